"""Models on other GPUs and machines: each replica is one loaded model in a process of Ray's.

The server that takes the requests, the *front*, keeps queue, journal, store and every policy. A *replica* is
a Ray actor with one loaded model. It gets a task with its pictures, and sends back progress and the outcome;
it never touches the store. `factory.py` puts replicas in the place of a model's own `BackendFactory`, so the
rest of the server sees a `Backend` like any other.

Why actors, and not deployments of Ray Serve: its router spreads requests by their number, but a picture of
four megapixels is not a question of ten words. The front chooses by the tokens that are outstanding and by
the adapters that a replica has loaded, which takes a handle for each replica. Serve then would add a
controller that must not fail and a gigabyte of processes, and nothing that actors lack: Ray places them,
starts them again after a loss, finds them by name, streams from them and cancels in them.

| file | what |
|---|---|
| `factory.py` | a `BackendFactory` whose models are replicas |
| `backend.py` | the `Backend`: attempts, moves, hedges |
| `members.py` | the replicas of a model as the front sees them; which one is next |
| `keeping.py` | starts, watches and ends them, as many as the work needs |
| `replica.py` | the actor |
| `sending.py` | tasks as they travel |
| `cluster.py` | Ray itself, started or joined; `reaper.py` ends it with the server |
"""
