"""What the bonds of a molecule say: a tree that places its atoms, what turns, and which atoms may change places."""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Row = tuple[int, int, int, int]


@dataclass(frozen=True)
class Symmetry:
    """A permutation of atoms that a rotation about one bond brings about, and that no energy feels.

    Attributes:
        axis: the bond, as (atom that stays, atom whose other neighbours take each other's places).
        fold: applied so many times it is the identity.
        order: positions x become x[:, order].
    """

    axis: tuple[int, int]
    fold: int
    order: tuple[int, ...]

    @property
    def moved(self) -> tuple[int, ...]:
        """The atoms that change places."""
        return tuple(atom for atom, source in enumerate(self.order) if atom != source)

    def images(self, atoms: tuple[int, ...]) -> list[tuple[int, ...]]:
        """Return what becomes of some atoms when it is applied 0, 1, ... times."""
        found = [atoms]
        for _ in range(self.fold - 1):
            found.append(tuple(self.order[atom] for atom in found[-1]))
        return found


@dataclass(frozen=True)
class Graph:
    """Atoms and bonds of one molecule.

    Attributes:
        elements: symbol of each atom.
        bonds: pairs of atoms.
    """

    elements: tuple[str, ...]
    bonds: tuple[tuple[int, int], ...]
    near: tuple[tuple[int, ...], ...] = field(init=False)

    def __post_init__(self) -> None:
        near: list[set[int]] = [set() for _ in self.elements]
        for i, j in self.bonds:
            near[i].add(j)
            near[j].add(i)
        object.__setattr__(self, "near", tuple(tuple(sorted(atoms)) for atoms in near))

    def __len__(self) -> int:
        return len(self.elements)

    def distances(self, start: int, without: int = -1) -> dict[int, int]:
        """Return the number of bonds to each atom that can be reached, nearest first, not by way of one atom."""
        found, waiting = {start: 0}, deque([start])
        while waiting:
            atom = waiting.popleft()
            for other in self.near[atom]:
                if other != without and other not in found:
                    found[other] = found[atom] + 1
                    waiting.append(other)
        return found

    def pieces(self) -> list[list[int]]:
        """Return the molecules, as atoms in their order."""
        left, found = set(range(len(self))), []
        while left:
            found.append(sorted(self.distances(min(left))))
            left -= set(found[-1])
        return found

    # --- rings, and what turns ---------------------------------------------------------------------------------------

    @cached_property
    def rings(self) -> list[tuple[int, ...]]:
        """The smallest ring through each bond that is part of one, each once, its atoms sorted."""
        found: dict[tuple[int, ...], None] = {}
        for i, j in self.bonds:
            before: dict[int, int] = {i: i}
            waiting = deque([i])
            while waiting and j not in before:
                atom = waiting.popleft()
                for other in self.near[atom]:
                    if other not in before and (atom, other) != (i, j):
                        before[other] = atom
                        waiting.append(other)
            if j in before:
                path = [j]
                while path[-1] != i:
                    path.append(before[path[-1]])
                found[tuple(sorted(path))] = None
        return list(found)

    def in_ring(self, *atoms: int) -> bool:
        """Return whether one ring holds all these atoms."""
        return any(set(atoms) <= set(ring) for ring in self.rings)

    def planar(self, atom: int) -> bool:
        """Return whether an atom's three bonds lie in a plane: sp2 carbon, and nitrogen that is conjugated with it."""
        if len(self.near[atom]) != 3:
            return False
        return self.elements[atom] == "C" or (
            self.elements[atom] == "N"
            and any(self.elements[other] == "C" and len(self.near[other]) == 3 for other in self.near[atom])
        )

    def turns(self, i: int, j: int) -> bool:
        """Return whether a bond may turn freely: it is in no ring, and neither an amide's nor otherwise conjugated."""
        if self.in_ring(i, j):
            return False
        carbon = [a for a in (i, j) if self.elements[a] == "C" and len(self.near[a]) == 3 and not self.in_ring(a)]
        other = [a for a in (i, j) if self.elements[a] == "N" and len(self.near[a]) in (2, 3)]
        return len(carbon) < 2 and not (carbon and other)

    # --- the tree ----------------------------------------------------------------------------------------------------

    @cached_property
    def root(self) -> int:
        """The atom in the middle, with two neighbours at least."""
        inner = [atom for atom in range(len(self)) if len(self.near[atom]) > 1]
        return min(inner, key=lambda atom: sum(self.distances(atom).values()))

    @cached_property
    def parents(self) -> dict[int, int]:
        """The neighbour of each atom on the way to the root; not of the root."""
        parents: dict[int, int] = {}
        for atom in list(self.distances(self.root))[1:]:
            parents[atom] = next(other for other in self.near[atom] if other in parents or other == self.root)
        return parents

    def children(self, atom: int) -> list[int]:
        """Return what an atom places, the one that the others are measured from first.

        That is the largest branch where the bond turns, so that torsions of the main chain are numbers of their own,
        and the smallest one where it does not.
        """
        found = [child for child, parent in self.parents.items() if parent == atom]
        sign = 1 if atom != self.root and not self.turns(atom, self.parents[atom]) else -1
        return sorted(found, key=lambda child: (sign * self._size[child], child))

    @cached_property
    def _size(self) -> dict[int, int]:
        size = dict.fromkeys(range(len(self)), 1)
        for atom in reversed(self.parents):
            size[self.parents[atom]] += size[atom]
        return size

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """A Z-matrix: each atom by bond, angle and torsion.

        The first atom that another one places has a torsion along the chain, the others are measured from it. Rows are
        sorted by how many others must be placed before.
        """
        root, first, second, *_ = self.root, *self.children(self.root)
        rows: dict[int, Row] = {
            root: (root, -1, -1, -1),
            first: (first, root, -1, -1),
            second: (second, root, first, -1),
        }
        level = {root: 0, first: 0, second: 0}
        for branch in self.children(root):
            waiting = deque([branch])
            while waiting:
                atom = waiting.popleft()
                waiting.extend(self.children(atom))
                if atom not in rows:
                    rows[atom] = self._row(atom, first, second)
                    level[atom] = 1 + max(level[other] for other in rows[atom][1:] if other in level)
        return tuple(sorted(rows.values(), key=lambda row: level[row[0]]))

    def _row(self, atom: int, first: int, second: int) -> Row:
        j = self.parents[atom]
        if j == self.root:
            return atom, j, first, second
        k, sibling = self.parents[j], self.children(j)[0]
        along = self.parents.get(k, second if j == first else first)
        return atom, j, k, along if sibling == atom else sibling

    @cached_property
    def circular(self) -> tuple[int, ...]:
        """Atoms whose torsion takes the whole circle, in the order of the rows."""
        return tuple(
            i
            for i, j, k, along in self.rows[3:]
            if j != self.root and self.parents.get(along) != j and self.turns(j, k)
        )

    # --- symmetry and handedness -------------------------------------------------------------------------------------

    @cached_property
    def classes(self) -> list[int]:
        """A number for each atom, equal where atoms look alike from all that surrounds them."""
        return self._classes(range(len(self)), {})

    def _classes(self, atoms: Sequence[int], fixed: dict[int, int]) -> list[int]:
        inside = set(atoms)
        now: list[object] = [(self.elements[a], len(self.near[a]), fixed.get(a, -1)) for a in range(len(self))]
        count = 0
        while True:
            names = {name: at for at, name in enumerate(sorted({repr(now[a]) for a in atoms}))}
            colors = [names.get(repr(name), -1) for name in now]
            if len(names) == count:
                return colors
            count = len(names)
            now = [(colors[a], sorted(colors[b] for b in self.near[a] if b in inside)) for a in range(len(self))]

    def symmetries(self, x: NDArray[np.float64]) -> list[Symmetry]:
        """Return the permutations that rotations about single bonds bring about: methyl groups, rings that flip, ...

        The two hydrogens of a CH2 group are not exchanged: that would take a reflection.

        Each is there once: a ring that flips, about the bond with the smaller part behind it.

        Args:
            x: positions, shape (n, 3): for the hands of what takes each other's places.
        """
        found: dict[tuple[int, ...], tuple[int, Symmetry]] = {}
        for bond in self.bonds:
            for k, j in (bond, bond[::-1]):
                others = [atom for atom in self.near[j] if atom != k]
                fold = len(others)
                if len(self.near[k]) < 2 or self.in_ring(j, k) or not (fold == 3 or (fold == 2 and self.planar(j))):
                    continue
                inside = list(self.distances(j, without=k))
                colors = self._classes(inside, {j: 1})
                if len({colors[atom] for atom in others}) > 1:
                    continue
                start = {j: j, **dict(zip(others, others[1:] + others[:1], strict=True))}
                ways = self._ways(inside, colors, start)
                order = next((way for way in ways if self._turns_back(way, fold) and self._same_hands(way, x)), None)
                if order is not None:
                    full = tuple(order.get(atom, atom) for atom in range(len(self)))
                    if full not in found or found[full][0] > len(inside):
                        found[full] = len(inside), Symmetry((k, j), fold, full)
        return [one for _, one in found.values()]

    def below(self, atom: int) -> list[int]:
        """Return what the tree places by way of an atom."""
        found = self.children(atom)
        for child in found:
            found.extend(self.children(child))
        return found

    def _ways(self, inside: Sequence[int], colors: Sequence[int], start: dict[int, int]) -> Iterator[dict[int, int]]:
        """Yield the maps of some atoms to themselves that keep bonds and colours, and start like this."""
        allowed, done = set(inside), dict(start)

        def more(at: int) -> Iterator[dict[int, int]]:
            if at == len(inside):
                yield dict(done)
            elif inside[at] in done:
                if self._fits(inside[at], done[inside[at]], done, allowed):
                    yield from more(at + 1)
            else:
                atom = inside[at]
                anchor = next(b for b in self.near[atom] if b in done)
                taken = set(done.values())
                for image in self.near[done[anchor]]:
                    if image in allowed and image not in taken and colors[image] == colors[atom]:
                        done[atom] = image
                        if self._fits(atom, image, done, allowed):
                            yield from more(at + 1)
                        del done[atom]

        return more(0)

    def _fits(self, atom: int, image: int, done: dict[int, int], allowed: set[int]) -> bool:
        return all(done[b] in self.near[image] for b in self.near[atom] if b in done and b in allowed)

    @staticmethod
    def _turns_back(way: dict[int, int], fold: int) -> bool:
        def again(atom: int) -> int:
            for _ in range(fold):
                atom = way[atom]
            return atom

        return all(again(atom) == atom for atom in way)

    def _same_hands(self, way: dict[int, int], x: NDArray[np.float64]) -> bool:
        for atom, image in way.items():
            if len(self.near[atom]) == 4:
                three = [b for b in self.near[atom] if b in way][:3]
                if len(three) == 3 and hand(x, atom, three) != hand(x, image, [way[b] for b in three]):
                    return False
        return True

    @cached_property
    def centers(self) -> list[tuple[int, int, int, int]]:
        """Atoms with four bonds, no three to atoms that look alike, each with three neighbours: what has a hand."""
        found = []
        for atom, others in enumerate(self.near):
            alike = [self.classes[other] for other in others]
            if len(others) == 4 and max(map(alike.count, alike)) < 3:
                one, two, three, _ = sorted(others, key=lambda other: (self.elements[other] == "H", other))
                found.append((atom, one, two, three))
        return found

    @property
    def stereocenters(self) -> list[tuple[int, int, int, int]]:
        """Those of `centers` with four different neighbours."""
        return [center for center in self.centers if len({self.classes[b] for b in self.near[center[0]]}) == 4]

    @cached_property
    def stiff(self) -> list[Row]:
        """One torsion for each bond that does not turn and is in no ring, between its largest neighbours."""
        found = []
        for j, k in self.bonds:
            if self.turns(j, k) or self.in_ring(j, k) or min(len(self.near[j]), len(self.near[k])) < 2:
                continue
            i, l = (self._largest(a, b) for a, b in ((j, k), (k, j)))  # noqa: E741
            found.append((i, j, k, l))
        return found

    def _largest(self, atom: int, but: int) -> int:
        others = [other for other in self.near[atom] if other != but]
        return min(others, key=lambda b: (-len(self.near[b]), sum(self.distances(b).values()), b))


def hand(x: NDArray[np.float64], atom: int, three: Sequence[int]) -> int:
    """Return the sign of the volume that three neighbours of an atom span, +1 or -1."""
    return 1 if np.linalg.det(x[list(three)] - x[atom]) > 0 else -1
