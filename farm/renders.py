"""The renders of a task by columns: what many have in common is written, and worked out, once."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Annotated, Any, NamedTuple, Self, TypeVar, overload

from pydantic import Field

from farm.spec import RenderSpec

Value = TypeVar("Value")


class NumberedSpec(NamedTuple):
    """A resolved render and its place in the job."""

    render: int  # index in the job, from 0; a refused line keeps its number
    spec: RenderSpec
    # Canonical JSON of what the user's row says besides; see ``farm.metadata``.
    metadata: str | None = None


# What a render is made of: its number, any variant of it, its prompt, its seed and its metadata.
VariantRow = tuple[int, RenderSpec, str | None, int, str | None]


def variant_row(render: NumberedSpec) -> VariantRow:
    return (render.render, render.spec, render.spec.prompt, render.spec.seed, render.metadata)


@dataclass(frozen=True)
class Renders(Sequence[NumberedSpec]):
    """One value of each render in every column; as a sequence, the renders one by one.

    An item is made when it is asked for, without being checked again.
    """

    specs: tuple[RenderSpec, ...]  # those that differ in more than prompt and seed, without the two
    kinds: tuple[int, ...]  # places in ``specs``
    numbers: tuple[int, ...]  # indices in the job, from 0; a refused line keeps its number
    prompts: tuple[str | None, ...]
    seeds: tuple[int, ...]
    # As in ``NumberedSpec``; empty where no render has any.
    metadata: Annotated[tuple[str | None, ...], Field(exclude_if=lambda column: not column)] = ()

    def __post_init__(self) -> None:
        columns = (self.kinds, self.numbers, self.prompts, self.seeds)
        if len({*map(len, columns), len(self.metadata or self.kinds)}) > 1:
            raise ValueError("the columns of its renders are not equally long")
        if self.kinds and not 0 <= min(self.kinds) <= max(self.kinds) < len(self.specs):
            raise ValueError("a render has a kind that is not there")

    @classmethod
    def of(cls, renders: Iterable[NumberedSpec]) -> Self:
        """The columns of these."""
        return cls.of_variants(map(variant_row, renders))

    @classmethod
    def of_variants(cls, rows: Iterable[VariantRow]) -> Self:
        """The same of renders that were not made, from what they are made of."""
        columns: tuple[tuple[Any, ...], ...] = tuple(zip(*rows, strict=True))
        numbers, specs, prompts, seeds, metadata = columns or ((),) * 5
        places: dict[str, int] = {}  # by what makes two specs differ
        objects = {id(spec): spec for spec in specs}
        of_object = {
            name: places.setdefault(spec.common, len(places)) for name, spec in objects.items()
        }
        kinds = tuple(map(of_object.__getitem__, map(id, specs)))
        firsts = dict(zip(reversed(kinds), reversed(specs), strict=True))
        return cls(
            tuple(firsts[kind].variant(None, 0) for kind in range(len(places))),
            kinds,
            numbers,
            prompts,
            seeds,
            metadata if any(metadata) else (),
        )

    def at(self, places: Sequence[int]) -> Self:
        """Those at the places, with the specs that they need."""
        return self._part(lambda column: tuple(map(column.__getitem__, places)))

    def _part(self, of: Callable[[tuple[Any, ...]], tuple[Any, ...]]) -> Self:
        kinds, metadata = of(self.kinds), of(self.metadata) if self.metadata else ()
        used = {kind: number for number, kind in enumerate(dict.fromkeys(kinds))}
        return type(self)(
            tuple(map(self.specs.__getitem__, used)),
            tuple(map(used.__getitem__, kinds)),
            of(self.numbers),
            of(self.prompts),
            of(self.seeds),
            metadata if any(metadata) else (),
        )

    def of_each(self, fact: Callable[[RenderSpec], Value]) -> Iterator[Value]:
        """A fact that does not follow from prompt and seed, worked out once for each kind."""
        return map([fact(spec) for spec in self.specs].__getitem__, self.kinds)

    def canonical(self) -> list[str]:
        """The canonical JSON of each spec."""
        columns = zip(self.kinds, self.prompts, self.seeds, strict=True)
        texts = [spec.canonical_variant for spec in self.specs]
        return [texts[kind](prompt, seed) for kind, prompt, seed in columns]

    @property
    def pictures(self) -> int:
        return sum(self.of_each(lambda spec: spec.num_images))

    @property
    def cost(self) -> int:
        """Row-steps."""
        return sum(self.of_each(lambda spec: spec.cost))

    def __len__(self) -> int:
        return len(self.kinds)

    def __iter__(self) -> Iterator[NumberedSpec]:
        columns = (self.kinds, self.numbers, self.prompts, self.seeds)
        specs = self.specs
        for (kind, number, prompt, seed), metadata in zip(
            zip(*columns, strict=True), self.metadata or repeat(None), strict=False
        ):
            yield NumberedSpec(number, specs[kind].variant(prompt, seed), metadata)

    @overload
    def __getitem__(self, place: int) -> NumberedSpec: ...

    @overload
    def __getitem__(self, place: slice) -> Self: ...

    def __getitem__(self, place: int | slice) -> NumberedSpec | Self:
        if isinstance(place, slice):
            return self._part(lambda column: column[place])
        return NumberedSpec(
            self.numbers[place],
            self.specs[self.kinds[place]].variant(self.prompts[place], self.seeds[place]),
            self.metadata[place] if self.metadata else None,
        )
