"""MkDocs hook: pages and pictures of the repository that are not in docs/, at the same links as in the repository.

README.md is the home page. Links that start with `../` in a page of docs/ also work outside the site.
"""

from pathlib import Path

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
# File in the repository, and its path in the site.
EXTRA = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "LICENSE": "LICENSE.txt",
    "space/README.md": "space.md",
    "modeling_dina/tiny/pictures.webp": "images/pictures.webp",
    "modeling_dina/tiny/accuracy.png": "images/accuracy.png",
}
EXTRA |= {
    path.relative_to(ROOT).as_posix(): path.relative_to(ROOT / "model_card").as_posix()
    for path in sorted((ROOT / "model_card" / "results").rglob("*"))
    if path.suffix in (".md", ".png")
}


def on_files(files: Files, config, **_) -> Files:
    """Add the files of `EXTRA`."""
    for source, target in EXTRA.items():
        files.append(File.generated(config, target, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page, **_) -> str:
    """Point links of the repository to the paths of the site."""
    if page.file.src_uri in ("index.md", "contributing.md", "changelog.md", "security.md"):
        links = {f"]({source}": f"]({target}" for source, target in EXTRA.items()}
        links["](docs/"] = "]("
    else:
        links = {f"](../{source}": f"]({target}" for source, target in EXTRA.items()}
    for link, target in links.items():
        markdown = markdown.replace(link, target)
    return markdown
