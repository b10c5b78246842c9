"""Files that are skipped when a folder is opened: for each kind, the number of files and the first names."""

from dataclasses import dataclass, field

from byol.base.errors import printable

_MOST_NAMES = 3  # names that are printed of a group of files


@dataclass
class Few:
    """The number of files of a kind, and the first names."""

    count: int = 0
    names: list[str] = field(default_factory=list)

    def add(self, name: str) -> None:
        """Count one more file; the names that are kept are the first in alphabetical order."""
        self.count += 1
        if len(self.names) < _MOST_NAMES or name < self.names[-1]:
            self.names = sorted([*self.names, name])[:_MOST_NAMES]

    def __str__(self) -> str:
        more = ", ..." if self.count > len(self.names) else ""
        return f"{', '.join(map(printable, self.names))}{more}"


@dataclass
class LeftOut:
    """The files that are skipped in a folder, and others to report."""

    suffixes: dict[str, Few] = field(default_factory=dict)  # files of kinds that are not read
    disguised: dict[str, str] = field(default_factory=dict)  # suffix of skipped files -> kind of image inside
    hidden: Few = field(default_factory=Few)  # hidden files and folders, and those of the system
    special: Few = field(default_factory=Few)  # pipes, sockets, devices
    by_content: Few = field(default_factory=Few)  # not skipped: files without suffix that hold an image
    unreadable: Few = field(default_factory=Few)  # folders
    notes: list[str] = field(default_factory=list)  # other messages about the source

    def describe_suffixes(self) -> str:
        """Return how many files of each suffix were skipped, the most common first."""
        most = sorted(self.suffixes.items(), key=lambda item: (-item[1].count, item[0]))
        return ", ".join(f"{few.count} {suffix or 'without suffix'}" for suffix, few in most[:5])
