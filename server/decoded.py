"""Pixels of the inputs that are decoded for a model and still in memory."""

from server.jobs import Job

DECODED_PIXELS = 128_000_000
"""Maximum pixels of decoded inputs in memory at once; a job with more is decoded alone."""


class DecodedPixels:
    """What the jobs that were handed over, and whose inputs were not read yet, keep in memory."""

    def __init__(self) -> None:
        self.count = 0

    def affordable(self, job: Job) -> bool:
        """Whether the job's pictures may be decoded beside those in memory."""
        return not job.pixels or not self.count or self.count + job.pixels <= DECODED_PIXELS

    def take(self, job: Job) -> None:
        """Count the job's pictures."""
        self.count += job.pixels
        job.decoded = True

    def release(self, job: Job) -> None:
        """Count the job's pictures as gone from memory, or as never loaded."""
        if job.decoded:
            self.count -= job.pixels
            job.decoded = False
