"""What other code sets for the whole process changes no picture, no text and no model that is loaded."""

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import torch
from accelerate import init_empty_weights
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

import omnigen2
from omnigen2.checkpoints.load import making_modules
from omnigen2.engine.engine import Engine
from omnigen2.model import OmniGen2
from omnigen2.params import ReferenceSampling
from omnigen2.task import ImageTask
from tests.omnigen2.golden import PIPELINE, model

QUICK = {"steps": 2, "width": 32, "height": 32, "seed": 7, "output": "latents"}

QUICK = {"steps": 3, "seed": 7, "output": "latents", "scheduler": "dpmsolver++"}
PICTURE = Image.radial_gradient("L").resize((48, 32)).convert("RGB")


@pytest.fixture
def omnigen() -> OmniGen2:
    return model(PIPELINE / "checkpoint")


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextmanager
def flipping() -> Iterator[None]:
    """Another thread sets the default dtype, back and forth, as libraries do while they load a model."""
    done = threading.Event()

    def flip() -> None:
        for dtype in itertools.cycle((torch.bfloat16, torch.float32, torch.float64, torch.float16)):
            torch.set_default_dtype(dtype)
            if done.wait(1e-4):
                return

    thread = threading.Thread(target=flip)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        torch.set_default_dtype(torch.float32)


State = Callable[[], AbstractContextManager[object]]
STATES: dict[str, State] = {
    "bfloat16 by default": lambda: default_dtype(torch.bfloat16),
    "float64 by default": lambda: default_dtype(torch.float64),
    "a dtype that another thread changes": flipping,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "gradients": torch.enable_grad,
    "no gradients": torch.no_grad,
    "deterministic algorithms": deterministic,
    "another device by default": lambda: torch.device("meta"),
}


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter."""
    generator = torch.Generator().manual_seed(2)
    sides = {"A": torch.randn((4, 96), generator=generator), "B": torch.randn((96, 4), generator=generator)}
    file = tmp_path_factory.mktemp("lora") / "one.safetensors"
    save_file({f"layers.0.attn.to_q.lora_{side}.weight": own for side, own in sides.items()}, file)
    return file


def everything(omnigen: OmniGen2, lora: Path | None = None) -> tuple[Tensor, Tensor, str, str]:
    """A picture from text, one of several sizes and a reference, and two texts, with nothing remembered."""
    omnigen.pipeline.forget()
    return (
        omnigen.generate("a red circle", width=48, height=32, lora=lora, **QUICK),
        omnigen.generate("make it blue", [PICTURE, PICTURE.rotate(90, expand=True)], width=32, **QUICK),
        omnigen.describe([PICTURE], "what is it?", max_tokens=6, temperature=1.0, seed=3),
        omnigen.describe([], "why?", max_tokens=6, temperature=0.0),
    )


@pytest.mark.parametrize("state", STATES.values(), ids=STATES)
def test_what_is_set_for_the_process_changes_nothing(omnigen: OmniGen2, lora: Path, state: State) -> None:
    wanted = everything(omnigen, lora)
    rng = torch.get_rng_state()
    with state():
        torch.manual_seed(99)
        mine = torch.get_rng_state()
        found = everything(omnigen, lora)
        assert torch.equal(torch.get_rng_state(), mine), "the global random state is other people's"
    torch.set_rng_state(rng)
    for one, other in zip(wanted[:2], found[:2], strict=True):
        assert isinstance(one, Tensor) and torch.equal(one, other) and other.dtype == torch.float32
    assert wanted[2:] == found[2:]


@pytest.mark.parametrize("state", list(STATES.values())[:3], ids=list(STATES)[:3])
def test_the_engine_decodes_the_same_picture_whatever_is_set(omnigen: OmniGen2, state: State) -> None:
    asked = ReferenceSampling(steps=2, seed=5, width=48, height=32)
    task = ImageTask("a star", (), asked.filled(omnigen.card.defaults_for(0)))
    engine = Engine(omnigen)
    try:
        wanted = engine.submit(task).future.result(60).pictures[0]
        omnigen.pipeline.forget()
        with state():
            found = engine.submit(task).future.result(60).pictures[0]
        assert found.tobytes() == wanted.tobytes()
    finally:
        engine.close()


@pytest.fixture(scope="module")
def untouched() -> OmniGen2:
    """The model as loaded."""
    return omnigen2.load(str(PIPELINE / "checkpoint"), device="cpu", dtype="float32")


@pytest.mark.parametrize("state", STATES.values(), ids=STATES)
def test_a_model_loaded_meanwhile_is_the_same_model(untouched: OmniGen2, state: State) -> None:
    with state():
        try:
            loaded = omnigen2.load(str(PIPELINE / "checkpoint"), device="cpu", dtype="float32")
        except ValueError as error:  # never a spoilt one
            assert state is flipping and "keeps changing" in str(error)
            return
    for name, own, other in zip(("transformer", "vae", "mllm"), parts(untouched), parts(loaded), strict=True):
        wanted = dict(itertools.chain(own.named_parameters(), own.named_buffers()))
        found = dict(itertools.chain(other.named_parameters(), other.named_buffers()))
        assert found.keys() == wanted.keys(), name
        for key, tensor in found.items():
            assert tensor.dtype == wanted[key].dtype and torch.equal(tensor, wanted[key]), f"{name}: {key}"


def parts(omnigen: OmniGen2) -> tuple[nn.Module, nn.Module, nn.Module]:
    pipeline = omnigen.pipeline
    return pipeline.transformer, pipeline.autoencoder.vae, pipeline.language.mllm


def test_models_loaded_in_several_threads_leave_the_process_as_it_was(omnigen: OmniGen2) -> None:
    loaded: list[OmniGen2] = []

    def load(dtype: str) -> None:
        loaded.append(omnigen2.load(str(PIPELINE / "checkpoint"), device="cpu", dtype=dtype))

    threads = [threading.Thread(target=load, args=(dtype,)) for dtype in ("bfloat16", "float32") * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.get_default_dtype() == torch.float32
    assert len(loaded) == 6
    for one in loaded:
        kinds = {tensor.dtype for part in parts(one) for tensor in part.parameters()}
        assert len(kinds) == 1
        if kinds == {torch.float32}:
            assert torch.equal(everything(one)[0], everything(omnigen)[0])


def test_an_adapter_met_while_a_model_loads_has_its_weights(omnigen: OmniGen2, lora: Path) -> None:
    expected = omnigen.generate("a circle", lora=lora, **QUICK)
    omnigen.pipeline.forget()
    with making_modules, init_empty_weights():  # as diffusers does: modules of all threads get no weights
        made: list[Tensor] = []
        thread = threading.Thread(
            target=lambda: made.append(omnigen.generate("a circle", lora=lora, **QUICK))
        )
        thread.start()
        thread.join(60)
    assert torch.equal(made[0], expected)
