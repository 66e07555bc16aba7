"""What the host decides, declared once: environment, TOML file, flags and reference page derive from it.

A flag beats the environment, the environment beats the file, the file beats the default. Defaults of sampling
are not here: they are the model's (`omnigen2.checkpoints.card`).
"""

import os
import pwd
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, ByteSize, Field, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from omnigen2.checkpoints.locate import NANO
from omnigen2.memory.placement import Placement, Quantization
from server.hosts import Structured
from storage import default_store_path
from storage.safe_files import real_folder

SHARED_FOLDERS = frozenset(
    Path(folder)
    for folder in (
        "/Applications", "/Library", "/System", "/Users", "/Volumes", "/bin", "/boot", "/dev", "/etc",
        "/home", "/lib", "/media", "/mnt", "/opt", "/private", "/private/etc", "/private/tmp",
        "/private/var", "/proc", "/root", "/run", "/sbin", "/srv", "/sys", "/tmp", "/usr", "/usr/bin",
        "/usr/local", "/var", "/var/tmp",
    )
)  # fmt: skip
"""Folders that were not chosen for their content, and where a desktop client may start a server."""


def _canonical(quantize: str) -> str:
    return str(Quantization.parse(quantize))


class Settings(BaseSettings):
    """How a server, or a single command, is set up.

    Each field is a flag (`--allow-dir`), an environment variable (`OMNIGEN2_ALLOW_DIR`) and a key of the TOML
    file (`allow_dir`).
    """

    model_config = SettingsConfigDict(
        env_prefix="OMNIGEN2_", env_ignore_empty=True, extra="forbid", frozen=True,
        use_attribute_docstrings=True, protected_namespaces=(),
    )  # fmt: skip

    config: Path | None = None
    """A TOML file with settings."""
    store: str = Field(default_factory=lambda: str(default_store_path()))
    """Where images are kept: a folder, `memory://` for as long as the process lives, or a plugin's URL."""
    quota: ByteSize | None = None
    """Most bytes that images and records may take, for example `20GB`. Without it, the disk is the limit."""
    model: str = NANO
    """The model used where a request names none: `nano`, a folder, a file of ComfyUI, or a repository id."""
    device: str = "auto"
    """Where models run: `auto`, `cpu`, `cuda` or `cuda:N`."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of the weights; `auto` is bfloat16 on a GPU and float32 on a CPU."""
    memory: Literal["auto", "resident", "offload", "stream"] = "auto"
    """Where weights rest: on the device (`resident`), on the host until a whole part (`offload`) or a block
    (`stream`) is used; `auto` takes the quickest that fits."""
    quantize: Annotated[str, AfterValidator(_canonical)] = "none"
    """Keep the weights of blocks in 8 bits (`int8`, `fp8`) or 4 (`nf4`), for both parts or for those named:
    `transformer=fp8,language=nf4`. Takes less memory; pictures change a little, and are recorded so."""
    compile: Literal["auto", "never"] = "auto"
    """`auto` compiles the blocks of the transformer where a GPU computes, once: the code is kept on disk."""
    replicas: int | None = Field(default=None, ge=1, le=1000)
    """Processes in which a model is loaded, each with a GPU to itself where there are any: `2` serves two
    requests side by side. Needs `omnigen2-mcp[ray]`, as does the next."""
    ray: str | None = None
    """A Ray cluster in which the replicas run: `HOST:PORT`, or `auto` for the one that this machine is part
    of. Without it, they run on this machine and end with the server."""
    min_replicas: int | None = Field(default=None, ge=1, le=1000)
    """Fewest replicas of a model, where their number follows the work."""
    max_replicas: int | None = Field(default=None, ge=1, le=1000)
    """Most replicas of a model, where their number follows the work."""
    idle_unload: float | None = Field(default=None, gt=0)
    """Seconds without work after which a model leaves the memory. Without it, it stays."""
    queue_size: int = Field(default=64, ge=1)
    """Requests that may wait at once; from one client at most as many as stay free for the others."""
    sharing: Literal["shared", "own"] = "shared"
    """What those who connect with tokens see: all images (`shared`), or only what they made or imported
    themselves (`own`). Who runs the server, and every client without a token, sees all."""
    max_waiting_jobs: int | None = Field(default=None, ge=1)
    """Most requests of one token's name that may wait at once, below what `queue_size` leaves to it."""
    max_images_per_hour: int | None = Field(default=None, ge=1)
    """Most images that one token's name may have made within an hour."""
    max_stored_bytes: ByteSize | None = None
    """Most bytes that the images and records of one token's name may take, for example `2GB`."""
    allow_dir: Annotated[tuple[Path, ...], NoDecode] = ()
    """Folders that clients may read images from and save images to. Over stdio the working directory is one,
    too, unless it is `/`, the home folder, or one that everybody shares."""
    lora_dir: Path | None = None
    """A folder of LoRA adapters (safetensors) that clients may use by name."""
    allow_fetch: bool = False
    """Let clients have images fetched from public https:// addresses."""
    transport: Literal["stdio", "http"] = "stdio"
    """How clients connect: started by the client (`stdio`), or over the network (`http`)."""
    host: str = "127.0.0.1"
    """Address to listen on, over HTTP. One beyond this machine needs a token file."""
    port: int = Field(default=8765, ge=0, le=65535)
    """Port to listen on, over HTTP; 0 takes a free one."""
    public_url: str | None = None
    """Where clients reach the server over HTTP, if not by the name they give: for example
    `https://studio.example` of a proxy. Addresses of images in results begin with it."""
    structured: Structured = "auto"
    """Whether MCP clients get results as structured content beside text and pictures. `auto`: all but those
    that then drop the pictures, where there are some."""
    token_file: Path | None = None
    """File of `name:token` lines: who may connect over HTTP, and what to call them."""
    oauth_issuer: str | None = None
    """Authorization server (OAuth 2.1) whose access tokens are accepted, as their `iss` has it. Their scopes
    are `studio:read` and `studio:write`."""
    oauth_audience: str | None = None
    """What these tokens must be for (`aud`): the address of MCP as clients reach it, `https://studio.example/mcp`."""
    oauth_jwks: str | None = None
    """Address of the issuer's public keys, if its metadata does not say it."""
    allow_origin: Annotated[tuple[str, ...], NoDecode] = ()
    """Origins of web pages elsewhere that may call over HTTP (CORS), such as `https://studio.example`."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Minimum level of the messages that are logged, to stderr."""

    @property
    def replica_range(self) -> tuple[int, int] | None:
        """The fewest and the most replicas of a model; None if models are loaded in this process."""
        asked = (self.replicas, self.min_replicas, self.max_replicas)
        if self.ray is None and not any(asked):
            return None
        least = self.min_replicas or self.replicas or 1
        return least, self.max_replicas or max(self.replicas or 1, least)

    @property
    def placement(self) -> Placement:
        """Where and how models run."""
        return Placement(
            self.device, self.dtype, self.memory, Quantization.parse(self.quantize), self.compile
        )

    @property
    def folders(self) -> tuple[Path, ...]:
        """Folders that clients may read from, as the transport has it."""
        return (*_working_directory(), *self.allow_dir) if self.transport == "stdio" else self.allow_dir

    @field_validator("allow_dir", mode="before")
    @classmethod
    def _split_path(cls, value: Any) -> Any:
        """An environment variable lists folders as PATH does."""
        return tuple(filter(None, value.split(os.pathsep))) if isinstance(value, str) else value

    @field_validator("allow_origin", mode="before")
    @classmethod
    def _split_list(cls, value: Any) -> Any:
        """An environment variable lists origins with commas."""
        return tuple(filter(None, value.split(","))) if isinstance(value, str) else value

    @field_validator("allow_origin")
    @classmethod
    def _are_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if wrong := [text for text in value if not re.fullmatch(r"https?://[^/?#\s*@A-Z]+", text)]:
            raise ValueError(f"no origin, as in https://studio.example:8443: {', '.join(wrong)}")
        return value

    @field_validator("allow_dir")
    @classmethod
    def _real_folders(cls, value: tuple[Path, ...]) -> tuple[Path, ...]:
        folders = tuple(folder.expanduser().absolute() for folder in value)
        if missing := [str(folder) for folder in folders if not real_folder(folder).is_dir()]:
            raise ValueError(f"no such folder: {', '.join(missing)}")
        return folders

    @field_validator("public_url")
    @classmethod
    def _is_address(cls, value: str | None) -> str | None:
        parts = urlsplit(value or "http://localhost")
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ValueError("give an address such as https://studio.example")
        return value and value.rstrip("/")

    @field_validator("oauth_issuer", "oauth_audience", "oauth_jwks")
    @classmethod
    def _is_secure(cls, value: str | None) -> str | None:
        if value is not None and not is_secure(value):
            raise ValueError("give an https:// address; http:// is for this machine only")
        return value

    @model_validator(mode="after")
    def _oauth_is_whole(self) -> Self:
        if (self.oauth_issuer is None) != (self.oauth_audience is None):
            raise ValueError("oauth_issuer and oauth_audience belong together")
        return self

    @model_validator(mode="after")
    def _replicas_are_in_order(self) -> Self:
        least, most = self.replica_range or (1, 1)
        if least > most:
            raise ValueError(f"max_replicas: {most} is less than the fewest replicas, {least}")
        return self

    @field_validator("lora_dir")
    @classmethod
    def _is_a_folder(cls, value: Path | None) -> Path | None:
        folder = None if value is None else value.expanduser().absolute()
        if folder is not None and not folder.is_dir():
            raise ValueError(f"no such folder: {folder}")
        return folder

    @model_validator(mode="after")
    def _config_was_read(self) -> Self:
        if self.config is not None and not self.config.is_file():
            raise ValueError(f"config: {self.config} does not exist")
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        file = init_settings().get("config") or env_settings().get("config")
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, file or None)


def _working_directory() -> tuple[Path, ...]:
    """The working directory, if it is narrow enough for somebody to have chosen it."""
    try:
        here, homes = Path.cwd(), {Path.home().resolve(), Path(pwd.getpwuid(os.getuid()).pw_dir).resolve()}
    except (OSError, RuntimeError, KeyError):  # it was deleted, or this user has no home
        return ()
    wide = here in SHARED_FOLDERS or any(home.is_relative_to(here) for home in homes)
    return () if wide else (here,)


def is_secure(url: str) -> bool:
    """Whether it is an address by https, or on this machine."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    here = parts.hostname in ("localhost", "127.0.0.1", "::1")
    return (
        bool(parts.hostname)
        and not parts.fragment
        and parts.scheme in ("https", *(("http",) if here else ()))
    )
