"""What the engine asks of a device: guards, copies that do not wait, CUDA graphs, caches."""

import contextlib
import logging
import os
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

import torch
from numpy.typing import NDArray
from torch import Tensor

WARM_UP_RUNS = 3  # before a capture: libraries allocate their workspaces on first use
RUN_AHEAD = 1  # pieces of work behind the one that runs; more would keep urgent rows waiting
ALIGNED = 128  # numbers; matrix kernels want to start at such places

# What errors say of a lack of memory. Only torch's allocator of a GPU raises OutOfMemoryError; a
# CPU's, the driver, Triton, cuBLAS and cuDNN have their own words, in a RuntimeError.
NO_MEMORY = (
    "out of memory",
    "ALLOC_FAILED",
    "ALLOCATION_FAILED",
    "can't allocate memory",
    "not enough memory",
)

T = TypeVar("T")


def lacks_memory(error: BaseException) -> bool:
    """Whether that was raised for want of memory, on the device or beside it."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in NO_MEMORY)


class Device:
    """One CPU or one GPU; an engine does all its work inside ``scope``."""

    def __init__(self, name: str | torch.device, *, graphs: bool = True) -> None:
        device = torch.device(name)
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", torch.cuda.current_device())
        self.torch = device
        self.is_cuda = device.type == "cuda"
        self.graphs = graphs and self.is_cuda
        self._stream: Any = None  # of all captures: the libraries keep a workspace for each stream
        self._pool: Any = None  # of all graphs: what one of them has computed, the next overwrites
        self._queued: deque[Any] = deque()

    @property
    def label(self) -> str:
        """For people: ``CPU``, or a GPU's number on its machine and its model."""
        if not self.is_cuda:
            return "CPU"
        shown = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")  # Ray gives each worker one
        index = int(self.torch.index)
        number = shown[index] if index < len(shown) and shown[index] else str(index)
        return f"GPU {number}, {torch.cuda.get_device_name(self.torch)}"

    @property
    def memory(self) -> Mapping[str, int]:
        """Bytes of the GPU: ``used`` by tensors, ``reserved`` by torch, ``total``; {} on a CPU."""
        if not self.is_cuda:
            return {}
        return {
            "used": torch.cuda.memory_allocated(self.torch),
            "reserved": torch.cuda.memory_reserved(self.torch),
            "total": torch.cuda.get_device_properties(self.torch).total_memory,
        }

    @contextlib.contextmanager
    def scope(self) -> Iterator[None]:
        """This GPU is torch's current one, float32 is exact, and kernels are not chosen by their
        time; all is restored at the end.

        torch keeps these switches for the whole process, so an engine may not simply set them.
        """
        if not self.is_cuda:
            yield
            return
        matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
        before = matmul.allow_tf32, cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark
        with torch.cuda.device(self.torch):
            matmul.allow_tf32 = cudnn.allow_tf32 = cudnn.benchmark = False
            cudnn.deterministic = True
            try:
                yield
            finally:
                matmul.allow_tf32, cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark = before

    @contextlib.contextmanager
    def tf32(self, allowed: bool) -> Iterator[None]:
        """Convolutions in float32 may round their inputs to 10 bits of mantissa here."""
        before = torch.backends.cudnn.allow_tf32
        torch.backends.cudnn.allow_tf32 = allowed
        try:
            yield
        finally:
            torch.backends.cudnn.allow_tf32 = before

    def upload(self, host: Tensor) -> Tensor:
        """The tensor on the device; a GPU copies it while the host goes on."""
        if not self.is_cuda:
            return host
        return host.pin_memory().to(self.torch, non_blocking=True)

    def upload_all(self, tensors: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
        """Tensors on the host likewise, of one type in the end: all of them in one copy."""
        if not self.is_cuda:
            return [one.to(dtype) for one in tensors]
        sizes = [-(-one.numel() // ALIGNED) * ALIGNED for one in tensors]
        host = torch.empty(sum(sizes), dtype=dtype, pin_memory=True)
        for place, one in zip(host.split(sizes), tensors, strict=True):
            place[: one.numel()].copy_(one.flatten())
        places = host.to(self.torch, non_blocking=True).split(sizes)
        return [
            place[: one.numel()].view(one.shape) for place, one in zip(places, tensors, strict=True)
        ]

    def give_back(self) -> None:
        """Leave to others, libraries among them, what torch holds and no tensor uses."""
        if self.is_cuda:
            torch.cuda.empty_cache()

    def keep_pace(self) -> None:
        """Called after a tile's step or decoding: the host queues the next one, but no more."""
        if not self.is_cuda:
            return
        event = torch.cuda.Event()
        event.record()
        self._queued.append(event)
        if len(self._queued) > RUN_AHEAD:
            self._queued.popleft().synchronize()

    def capture(self, function: Callable[[], object]) -> Callable[[], object]:
        """Record the function as a CUDA graph and return its replay.

        It may read and write only tensors that live longer than the graph. All graphs of a device
        share one memory pool, because no two of them ever run at once. Where there is no graph to
        be had, the function itself is returned.
        """
        if not self.graphs:
            return function
        if self._stream is None:
            self._stream = torch.cuda.Stream(self.torch)
            self._pool = torch.cuda.graph_pool_handle()
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            for _ in range(WARM_UP_RUNS):
                function()
        current.wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(
                graph,
                pool=self._pool,
                stream=self._stream,
                capture_error_mode="thread_local",  # other threads may use CUDA meanwhile
            ):
                function()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:
            logging.getLogger(__name__).warning("runs without a CUDA graph", exc_info=True)
            return function
        finally:
            # A capture that fails at its end leaves torch on its own stream.
            torch.cuda.set_stream(current)
        return graph.replay

    def graphed(
        self, function: Callable[..., Tensor | tuple[Tensor, ...]], *examples: Tensor
    ) -> Callable[..., tuple[Tensor, ...]]:
        """The function of tensors shaped as the examples, as a CUDA graph where there are graphs.

        What it returns is overwritten by its next call.
        """
        if not self.graphs:
            return lambda *given: _tuple(function(*given))
        outputs = tuple(torch.empty_like(one) for one in _tuple(function(*examples)))

        def computed() -> None:
            for target, value in zip(outputs, _tuple(function(*examples)), strict=True):
                target.copy_(value)

        replay = self.capture(computed)

        def run(*given: Tensor) -> tuple[Tensor, ...]:
            for target, value in zip(examples, given, strict=True):
                target.copy_(value)
            replay()
            return outputs

        return run


def _tuple(value: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)


class Shaped:
    """A function of tensors, as CUDA graphs for inputs of the shapes that were captured.

    What a graph returns is overwritten by its next call.
    """

    def __init__(
        self, device: Device, function: Callable[..., Tensor | tuple[Tensor, ...]]
    ) -> None:
        self._device, self._function = device, function
        self._graphs: dict[tuple[torch.Size, ...], Callable[..., tuple[Tensor, ...]]] = {}

    def capture(self, *examples: Tensor) -> None:
        shapes = tuple(one.shape for one in examples)
        self._graphs[shapes] = self._device.graphed(self._function, *examples)

    def __call__(self, *given: Tensor) -> tuple[Tensor, ...]:
        graph = self._graphs.get(tuple(one.shape for one in given))
        return _tuple(self._function(*given)) if graph is None else graph(*given)


class Download:
    """Tensors on their way to the host, while the device works on."""

    def __init__(self, *tensors: Tensor) -> None:
        self._event: Any = None
        self._host = tensors
        if tensors[0].is_cuda:
            self._host = tuple(
                torch.empty(one.shape, dtype=one.dtype, pin_memory=True).copy_(
                    one, non_blocking=True
                )
                for one in tensors
            )
            self._event = torch.cuda.Event()
            self._event.record()

    @property
    def ready(self) -> bool:
        return self._event is None or bool(self._event.query())

    def arrays(self) -> list[NDArray[Any]]:
        """Wait for them, if they are not there yet."""
        if self._event is not None:
            self._event.synchronize()
        return [tensor.numpy() for tensor in self._host]


class Lru(Generic[T]):
    """The last used values, bounded by their bytes."""

    def __init__(self, limit: int, size: Callable[[T], int]) -> None:
        self._limit, self._size, self._held = limit, size, 0
        self._values: OrderedDict[Hashable, T] = OrderedDict()

    def find(self, key: Hashable) -> T | None:
        if key in self._values:
            self._values.move_to_end(key)
        return self._values.get(key)

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        value = self.find(key)
        if value is None:
            value = make()
            self.put(key, value)
        return value

    def put(self, key: Hashable, value: T) -> None:
        self._values[key] = value
        self._held += self._size(value)
        while self._held > self._limit and len(self._values) > 1:
            self._held -= self._size(self._values.popitem(last=False)[1])

    def clear(self) -> None:
        self._values.clear()
        self._held = 0

    def __contains__(self, key: Hashable) -> bool:
        return key in self._values

    @property
    def held(self) -> int:
        return self._held

    def __len__(self) -> int:
        return len(self._values)
