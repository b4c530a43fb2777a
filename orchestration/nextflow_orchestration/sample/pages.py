"""Pages for the sample's photographs, made only of words that ship beside them.

scikit-image says what each picture shows, where it came from and under which terms in the docstring of the function that
loads it; and the examples of its other functions say what the picture is good for. Both are read with `ast`, nothing is
imported or run. scikit-learn has a README beside its two photographs. The small reStructuredText reader below knows what
those docstrings use (sections, paragraphs, links, literals, lists, footnotes, indented blocks) and passes the rest on as
text, which is cheaper than a dependency on docutils and, for a sample, enough.
"""

from __future__ import annotations

import ast
import posixpath
import re
import zipfile
from dataclasses import dataclass
from html import escape

PICTURES = (".png", ".jpg", ".jpeg", ".gif")
_SKIMAGE_TERMS = "scikit_image-*.dist-info/LICENSE.txt"


@dataclass(frozen=True)
class Photograph:
    """A picture and its words. `sections` are (heading or "", reStructuredText); `files` are the wheel's members it shows.

    `licence` is what the wheel says: an SPDX id, or plain words, or "see <file>" where it does not say.
    """

    name: str
    title: str
    caption: str
    sections: tuple[tuple[str, str], ...]
    files: tuple[str, ...]
    licence: str


def skimage_photographs(archive: zipfile.ZipFile) -> list[Photograph]:
    """Every picture that a function of skimage/data/_fetchers.py loads and that lies in the wheel, by function name."""
    names = set(archive.namelist())
    terms = next((n for n in sorted(names) if n.endswith(".dist-info/LICENSE.txt")), _SKIMAGE_TERMS)
    uses = _uses(archive)
    found = []
    for function in ast.parse(archive.read("skimage/data/_fetchers.py")).body:
        doc = ast.get_docstring(function) if isinstance(function, ast.FunctionDef) else None
        if doc is None or not isinstance(function, ast.FunctionDef) or function.name.startswith("_"):
            continue
        files = tuple(f for f in _loaded(function) if f in names and f.endswith(PICTURES))
        if not files:
            continue
        head, sections = split_sections(doc)
        summary, _, rest = head.partition("\n\n")
        returned = dict(sections).get("Returns", "")
        body = [("", rest)] + [s for s in sections if s[0] != "Returns"]
        body += [(f"Used in {where}", text) for where, text in uses.get(function.name, [])]
        licence = _licence(doc) or f"see {terms}"
        found.append(Photograph(function.name, " ".join(summary.split()), returned, tuple(body), files, licence))
    return sorted(found, key=lambda p: p.name)


def readme_photographs(archive: zipfile.ZipFile, folder: str) -> list[Photograph]:
    """The pictures of `folder` that its README.txt describes, one `Image: name` paragraph group each."""
    names = set(archive.namelist())
    found = []
    for part in re.split(r"^Image:\s*", archive.read(folder + "README.txt").decode(), flags=re.M)[1:]:
        file, _, text = part.partition("\n")
        member = folder + file.strip()
        if member in names:
            licence = _licence(text) or f"see {folder}README.txt"
            stem = posixpath.splitext(file.strip())[0]
            found.append(Photograph(stem, f"Image: {file.strip()}", "", (("", text.strip()),), (member,), licence))
    return found


def gallery_page(photograph: Photograph, package: str) -> str:
    """The photograph's HTML page: title, picture with caption, then its sections in order."""
    title = _inline(photograph.title)
    plain = escape(_plain(photograph.title))
    figures = []
    for member in photograph.files:
        file = posixpath.basename(member)
        caption = f": {_inline(' '.join(photograph.caption.split()))}" if photograph.caption else ""
        figures.append(
            f'<figure>\n<img src="{escape(file)}" alt="{plain}">\n'
            f"<figcaption>{escape(file)}{caption}</figcaption>\n</figure>"
        )
    parts = []
    for heading, text in photograph.sections:
        parts += [f"<h2>{_inline(heading)}</h2>"] if heading else []
        parts += _blocks(text)
    body = "\n".join([f"<h1>{title}</h1>", *figures, *parts])
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{plain} ({escape(package)})</title>\n'
        f"</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def split_sections(doc: str) -> tuple[str, list[tuple[str, str]]]:
    """A numpydoc docstring's text before its first section, and its sections in order as (heading, text)."""
    parts = re.split(r"^([A-Z][\w ]+)\n-{3,}\s*$", doc, flags=re.M)
    return parts[0].strip(), [(parts[i].strip(), parts[i + 1].strip("\n")) for i in range(1, len(parts), 2)]


def _loaded(function: ast.FunctionDef) -> list[str]:
    """Wheel members of the files that the body asks for by name, in order."""
    found = []
    for node in ast.walk(function):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("_load", "_fetch"):
            for argument in node.args:
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                    found.append((node.lineno, node.col_offset, f"skimage/{argument.value}"))
    return [name for *_, name in sorted(found)]


def _uses(archive: zipfile.ZipFile) -> dict[str, list[tuple[str, str]]]:
    """For each data function, the (qualified name, description) of the functions whose examples call it."""
    uses: dict[str, list[tuple[str, str]]] = {}
    for name in sorted(archive.namelist()):
        if (
            not (name.startswith("skimage/") and name.endswith(".py"))
            or "/tests/" in name
            or name.startswith("skimage/data/")
        ):
            continue
        package = posixpath.dirname(name).replace("/", ".")
        for node in ast.parse(archive.read(name)).body:
            doc = ast.get_docstring(node) if isinstance(node, ast.FunctionDef | ast.ClassDef) else None
            if doc is None or not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
                continue
            head, sections = split_sections(doc)
            examples = dict(sections).get("Examples", "")
            called = set(re.findall(r"\bdata\.(\w+)\(", examples))
            for names in re.findall(r"from skimage\.data import ([\w, ]+)", examples):
                called |= {n.strip() for n in names.split(",")}
            for used in sorted(called):
                uses.setdefault(used, []).append((f"{package}.{node.name}", head))
    return uses


def _licence(text: str) -> str | None:
    """The licence a description states, or None. The order matters: a CC0 text also says "public domain"."""
    words = " ".join(text.split())
    if found := re.search(r"creativecommons\.org/licenses/([a-z-]+)/(\d\.\d)", words):
        return f"CC-{found[1].upper()}-{found[2]}"
    if re.search(r"\bCC-?0\b", words):
        return "CC0-1.0"
    if re.search(r"public domain", words, flags=re.I):
        return "public domain"
    if re.search(r"no (known )?copyright restrictions", words, flags=re.I):
        return "no known copyright restrictions"
    return None


def _blocks(text: str) -> list[str]:
    """Paragraphs, bullet lists, footnotes and indented literal blocks of reStructuredText as HTML."""
    html: list[str] = []
    literal = False
    for block in re.split(r"\n\s*\n", text.strip("\n")):
        if not block.strip():
            continue
        lines = block.splitlines()
        indented = all(line.startswith((" ", "\t")) for line in lines if line.strip())
        if literal and indented:
            html.append(f"<pre>{escape(block)}</pre>")
            continue
        literal = block.rstrip().endswith("::")
        if re.match(r"\s*>>>", block):
            html.append(f"<pre>{escape(block)}</pre>")
        elif re.match(r"\s*(\.\. \[|\[\d+\] )", block):
            notes = re.split(r"^\s*(?:\.\. )?(?=\[\d+\])", block, flags=re.M)
            html.append("<ul>" + "".join(f"<li>{_inline(' '.join(n.split()))}</li>" for n in notes if n.strip()) + "</ul>")
        elif re.match(r"\s*[-*] ", block):
            items = re.split(r"^\s*[-*] ", block, flags=re.M)
            html.append("<ul>" + "".join(f"<li>{_inline(' '.join(i.split()))}</li>" for i in items if i.strip()) + "</ul>")
        else:
            words = re.sub(r"^\.\. versionchanged:: *(\S+)", r"Changed in version \1:", " ".join(block.split()))
            words = re.sub(r"^\.\. (\w+):: *", r"\1: ", words)
            html.append(f"<p>{_inline(re.sub(r'::$', ':', words))}</p>")
    return html


_LINK = re.compile(r"`([^`<]+?)\s*<([^`>]+)>`_{0,2}")
_BARE = re.compile(r"(?<![\"'>=])\bhttps?://[^\s<>\"'`)]+[^\s<>\"'`).,]")


def _inline(text: str) -> str:
    """Links, literals, roles and footnote marks; everything else is escaped text."""
    out, last = [], 0
    pattern = re.compile(rf"{_LINK.pattern}|``([^`]+)``|:\w+(?::\w+)?:`([^`]+)`|`([^`]+)`|({_BARE.pattern})")
    for match in pattern.finditer(text):
        out.append(_marks(text[last : match.start()]))
        label, target, literal, role, plain, bare = match.groups()
        if target:
            out.append(f'<a href="{escape(" ".join(target.split()))}">{escape(label)}</a>')
        elif bare:
            out.append(f'<a href="{escape(bare)}">{escape(bare)}</a>')
        else:
            out.append(f"<code>{escape(literal or role.lstrip('~') if role else literal or plain)}</code>")
        last = match.end()
    out.append(_marks(text[last:]))
    return "".join(out)


def _marks(text: str) -> str:
    return escape(re.sub(r"(\[\d+\])_", r"\1", text), quote=False)


def _plain(text: str) -> str:
    return re.sub(r"<[^>]+>", "", _inline(text)).replace("&amp;", "&")
