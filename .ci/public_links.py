"""Give a copy of the sources that is to be published the address of its repository.

``python .ci/public_links.py FOLDER ADDRESS TAG``: relative links of README.md become absolute,
since an index of packages shows that page without the files beside it; pyproject.toml gets the URLs
of the project, and CITATION.cff the address.  No file of the repository itself contains it.
"""

import re
import sys
from pathlib import Path

_LINK = re.compile(r"(!?)(\[[^\]]*\])\((?!\w+:|#)([^)\s]+)\)")


def absolute(text: str, address: str, tag: str) -> str:
    """A Markdown text whose relative links lead to the files of a tag."""

    def link(match: re.Match[str]) -> str:
        kind = "raw" if match[1] else "blob"
        return f"{match[1]}{match[2]}({address}/{kind}/{tag}/{match[3]})"

    return _LINK.sub(link, text)


def urls(address: str, tag: str) -> str:
    """The section of pyproject.toml with the addresses of the project."""
    pages = {
        "Source": address,
        "Documentation": f"{address}/blob/{tag}/docs/index.md",
        "Changes": f"{address}/blob/{tag}/CHANGELOG.md",
        "Issues": f"{address}/issues",
    }
    return "\n".join(["[project.urls]", *(f'{name} = "{url}"' for name, url in pages.items()), ""])


def main(folder: str, address: str, tag: str) -> None:
    address = address.rstrip("/")
    readme = Path(folder, "README.md")
    readme.write_text(absolute(readme.read_text("utf-8"), address, tag), "utf-8")
    append(Path(folder, "pyproject.toml"), f"\n{urls(address, tag)}")
    append(Path(folder, "CITATION.cff"), f'repository-code: "{address}"\n')


def append(path: Path, text: str) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(text)


if __name__ == "__main__":
    main(*sys.argv[1:])
