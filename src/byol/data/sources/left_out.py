"""What is passed by when a folder is opened, by kinds, with how many there are and the first names."""

from dataclasses import dataclass, field

from byol.base.errors import printable

_MOST_NAMES = 3  # of a group of files that are told


@dataclass
class Few:
    """How many files there are of a kind, and the first names."""

    count: int = 0
    names: list[str] = field(default_factory=list)

    def add(self, name: str) -> None:
        """One more; the names that are kept are the first in alphabetical order."""
        self.count += 1
        if len(self.names) < _MOST_NAMES or name < self.names[-1]:
            self.names = sorted([*self.names, name])[:_MOST_NAMES]

    def __str__(self) -> str:
        more = ", ..." if self.count > len(self.names) else ""
        return f"{', '.join(map(printable, self.names))}{more}"


@dataclass
class LeftOut:
    """What is passed by in a folder."""

    suffixes: dict[str, Few] = field(default_factory=dict)  # files of kinds that are not read
    disguised: dict[str, str] = field(default_factory=dict)  # of these suffixes: the kind of image they hold
    hidden: Few = field(default_factory=Few)  # files and folders of the system's, and hidden ones
    special: Few = field(default_factory=Few)  # pipes, sockets, devices
    by_content: Few = field(default_factory=Few)  # not left out: read, though their names do not say so
    unreadable: Few = field(default_factory=Few)  # folders
    notes: list[str] = field(default_factory=list)  # other things to say of a source

    def describe_suffixes(self) -> str:
        """How many of which, the most common first."""
        most = sorted(self.suffixes.items(), key=lambda item: (-item[1].count, item[0]))
        return ", ".join(f"{few.count} {suffix or 'without suffix'}" for suffix, few in most[:5])
