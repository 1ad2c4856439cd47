"""The one mkdocs hook: it hands the tree to `tools` and puts what they make into the build.

It decides nothing by itself: what there is comes from `tools.catalogue`, what pages show from
`tools.site_pages` and `tools.tables`, notebooks are tidied by `tools.site_notebook`, and the finished site
is looked over by `tools.site_check`.
Something that has not been made is a warning, which a strict build fails on and which `make serve` shows
in the page instead.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import FileSystemBytecodeCache
from mkdocs.exceptions import PluginError
from mkdocs.plugins import event_priority, get_plugin_logger
from mkdocs.structure.files import File, Files

from tools import site_cache, site_notebook, site_pages, site_search, tables
from tools.catalogue import Catalogue, Pattern, front_matter, load

if TYPE_CHECKING:
    from collections.abc import Callable

    from jinja2 import Environment
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.pages import Page
    from mkdocs.utils.templates import TemplateContext

log = get_plugin_logger("handbook")

_MARKER = re.compile(r"^<!-- ([a-z]+(?:: [a-z]+)?|chart: .+?) -->$", re.MULTILINE)
_SHOWN = re.compile(
    r'^(?P<fence>`{3,})[^\n`]*\n(?P<includes>(?:--8<-- "[^"\n]+"\n|\n)+)(?P=fence)$', re.MULTILINE
)
_INCLUDE = re.compile(r'--8<-- "(?P<path>[^":\n]+)(?::(?P<region>[\w-]+))?"')


@dataclass
class _Build:
    """What one build knows; mkdocs loads a hook once and builds many times."""

    catalogue: Catalogue
    store: site_cache.Store
    said: set[str] = field(default_factory=set)


_builds: list[_Build] = []
_serving: list[bool] = []
_drawn: dict[str, str] = {}


def on_startup(command: str, **_: object) -> None:
    """Note whether the site is served: then drawings are made again as their sources change."""
    _serving[:] = [command == "serve"]


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Read the catalogue, and watch every folder that a page is made from."""
    root = _root(config)
    if any(_serving):
        _draw(root)
    _builds[:] = [_Build(load(root), site_cache.Store(root, config))]
    for folder in ("patterns", "notebooks", "results", "diagrams_src"):
        if (root / folder).is_dir():
            config.watch.append(str(root / folder))
    return config


@event_priority(100)  # before mkdocs-jupyter looks for its notebooks
def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add notebooks, category pages and module pages, and make the navigation."""
    catalogue = _builds[0].catalogue
    for error in catalogue.errors:
        log.warning(error)
    root = _root(config)
    notebooks = [
        *sorted((root / "notebooks").glob("*.ipynb")),
        *sorted((root / "notebooks").glob("*/*.ipynb")),
    ]
    for path in notebooks:
        uri = path.relative_to(root).as_posix()
        files.append(File(uri, str(root), config.site_dir, config.use_directory_urls))
    for category in catalogue.categories:
        _generate(files, config, f"{category.name}/index.md", f"../patterns/{category.name}/__init__.py")
    _generate(files, config, "api/index.md", None)
    modules = site_pages.modules(root)
    for module in modules:
        source = site_pages.source_of(root, module).relative_to(root).as_posix()
        _generate(files, config, site_pages.api_uri(module), f"../{source}")
    config.nav = _nav(catalogue, files, modules)
    _builds[0].store.pages_are(files)
    return files


@event_priority(-100)  # after every plugin has had its say, so that what is remembered is what is rendered
def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Make a page's final Markdown, and let it be rendered only if that is new."""
    is_notebook = page.file.src_uri.endswith(".ipynb")
    _builds[0].store.wrap(page, config, site_notebook.tidy if is_notebook else None)
    return _made(markdown, page, config, files)


def _made(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Give a page its head, fill its markers, and link each included region to its source."""
    catalogue = _builds[0].catalogue
    uri = page.file.src_uri
    key = uri.removesuffix(".md")
    link = _linker(page, config, files)
    page.meta.setdefault("search", _search(uri, catalogue))
    if uri.endswith(".ipynb"):
        page.meta["status"] = "notebook"
        try:
            page.meta["title"] = site_notebook.title(page.file.content_string)
        except ValueError as error:
            raise PluginError(f"{uri}: {error}") from error
        page.meta["description"] = f"{page.meta['title']}: a notebook, saved executed."
        page.edit_url = f"{_repository(config)}/edit/main/{uri}"
        return markdown
    categories = {f"{category.name}/index.md": category for category in catalogue.categories}
    if category := categories.get(uri):
        page.meta["description"] = category.summary
        return _or_say(page, lambda: site_pages.category_page(category, link, catalogue.root))
    if uri == "api/index.md":
        page.meta["description"] = "Every module of the handbook, from its docstrings, with its source."
        return site_pages.api_index(catalogue.root, link)
    if uri.startswith("api/"):
        module = site_pages.module_of(uri)
        page.meta["title"] = module
        page.meta["description"] = f"{module}: public names and source."
        return site_pages.api_page(catalogue.root, module)
    if pattern := catalogue.patterns.get(key):
        page.meta["description"] = pattern.summary
        heads = re.split(r"(?m)^(# .+)$", markdown, maxsplit=1)
        if len(heads) != 3:
            log.warning(f"{uri}: a page begins with one heading `# Title`")
        else:
            made = _or_say(page, lambda: site_pages.head(catalogue, pattern, link))
            markdown = f"{heads[0]}{heads[1]}\n\n{made}\n{heads[2]}"
    markdown = _MARKER.sub(lambda match: _or_say(page, lambda: _fill(match[1], key, link)), markdown)
    return _SHOWN.sub(lambda match: _shown(match, page, link), markdown)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Give a notebook its head; offer a preview on links to patterns."""
    catalogue = _builds[0].catalogue
    uri = page.file.src_uri
    if uri.endswith(".ipynb"):
        key = uri.removeprefix("notebooks/").removesuffix(".ipynb")
        head = site_pages.notebook_head(catalogue, key, _linker(page, config, files))
        html = html.replace("</h1>", f"</h1>\n{head}", 1)
    # The source of a diagram is no text to search in.
    html = html.replace('<pre class="mermaid">', '<pre class="mermaid" data-search-exclude="yes">')
    targets = {
        file.url_relative_to(page.file)
        for file in files.documentation_pages()
        if file.src_uri.removesuffix(".md") in catalogue.patterns and file.src_uri != uri
    }
    return re.sub(
        r'<a href="([^"#]*)("|#)',
        lambda match: f"<a data-preview {match[0][3:]}" if match[1] in targets else match[0],
        html,
    )


@event_priority(-100)  # after the search index was fed: it takes a second to read what it then leaves out
def on_page_context(
    context: TemplateContext, *, page: Page, config: MkDocsConfig, **_: object
) -> TemplateContext:
    """Put the source under a module's names."""
    uri = page.file.src_uri
    if uri.startswith("api/") and page.content and site_pages.LISTING in page.content:
        root = _root(config)
        source = site_pages.source_of(root, site_pages.module_of(uri)).read_text("utf-8")
        made = _builds[0].store.remember(["listing", source], lambda: {"html": site_pages.listing(source)})
        page.content = page.content.replace(site_pages.LISTING, made["html"], 1)
    return context


def on_env(env: Environment, *, config: MkDocsConfig, **_: object) -> Environment:
    """Keep compiled templates: compiling them takes a third of a build in which one page has changed."""
    folder = _root(config) / ".cache" / "templates"
    folder.mkdir(parents=True, exist_ok=True)
    env.bytecode_cache = FileSystemBytecodeCache(str(folder))
    return env


@event_priority(-100)  # after mkdocs-jupyter, which may have put a script at the end of the page
def on_post_page(output: str, **_: object) -> str:
    """Leave out what a page would fetch from another host."""
    return site_notebook.without_scripts(output)


@event_priority(-100)  # after the search index was written
def on_post_build(config: MkDocsConfig, **_: object) -> None:
    """Say in the search index what readers type; forget the pages that are no more."""
    site_search.promise(Path(config.site_dir, "search", "search_index.json"), _builds[0].catalogue)
    _builds[0].store.evict()


def _fill(marker: str, key: str, link: site_pages.Link) -> str:
    catalogue = _builds[0].catalogue

    def pattern() -> Pattern:
        if key not in catalogue.patterns:
            raise site_pages.Unmade(f"<!-- {marker} --> needs a pattern with sound front matter")
        return catalogue.patterns[key]

    def result(kind: str) -> dict[str, Any]:
        return site_pages.result(catalogue.root, kind, key)

    makers: dict[str, Callable[[], str]] = {
        "table: faults": lambda: tables.fault_table(result("faults")),
        "table: cost": lambda: tables.cost_table(result("benchmarks")),
        "chart: cost": lambda: tables.cost_chart(result("benchmarks")),
        "related": lambda: site_pages.related(catalogue, pattern(), link),
        "diagram": lambda: site_pages.diagram(catalogue, pattern(), link),
        "counts": lambda: site_pages.counts(catalogue),
        "categories": lambda: site_pages.shelves(catalogue, link),
        "symptoms": lambda: site_pages.symptom_list(catalogue, link),
    }
    if marker in makers:
        return makers[marker]()
    kind, _, question = marker.partition(": ")
    if kind == "chart" and key not in catalogue.patterns:  # of a page across patterns
        try:
            return tables.question_chart(result("benchmarks"), question)
        except ValueError as error:
            raise site_pages.Unmade(f"<!-- {marker} -->: {error}") from error
    # `<!-- material/tags -->` and ordinary comments do not look like this; a typing error does.
    raise site_pages.Unmade(f"<!-- {marker} --> is not one of {', '.join(makers)}")


def _shown(match: re.Match[str], page: Page, link: site_pages.Link) -> str:
    """Return a fence of included regions, and under it the places that they were taken from."""
    places = ", ".join(_place(include, page, link) for include in _INCLUDE.finditer(match["includes"]))
    return f'{match[0]}\n<p class="source">{places}</p>'


def _place(include: re.Match[str], page: Page, link: site_pages.Link) -> str:
    path, region = include["path"], include["region"]
    root = _builds[0].catalogue.root
    where = f"docs/{page.file.src_uri}"
    if not (root / path).is_file():
        raise PluginError(f"{where}: it includes {path}, and there is no such file")
    line = site_pages.region_line((root / path).read_text("utf-8"), region) if region else 1
    if line is None:
        raise PluginError(f"{where}: it includes {path}:{region}, and there is no such region")
    module = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    if path.endswith(".py") and module in site_pages.modules(root):
        address = f"{link(site_pages.api_uri(module))}#{site_pages.LINE}{line}"
    else:
        address = f"{link('repo:' + path)}#L{line}"
    return f'<a href="{address}">{escape(path)}{f", line {line}" if region else ""}</a>'


def _or_say(page: Page, make: Callable[[], str]) -> str:
    """Return what `make` makes, or, as a warning and in the page, the sentence that says why not."""
    try:
        return make()
    except site_pages.Unmade as error:
        sentence = f"docs/{page.file.src_uri}: {error}"
        if sentence not in _builds[0].said:
            _builds[0].said.add(sentence)
            log.warning(sentence)
        return (
            '<div class="admonition failure"><p class="admonition-title">Not made yet</p>'
            f"<p>{escape(str(error), quote=False)}</p></div>"
        )


def _draw(root: Path) -> None:
    """Draw what has changed since the last build of this process; `make site` draws by itself."""
    from tools.diagrams import keys, main  # noqa: PLC0415 - a build that only reads drawings needs none

    for key in keys():
        digest = site_cache.digest([(root / "diagrams_src" / f"{key}.py").read_bytes()])
        if _drawn.get(key) != digest:
            _drawn[key] = digest
            main([key])


def _nav(catalogue: Catalogue, files: Files, modules: list[str]) -> list[object]:
    """Home, choose, each category with its patterns and their notebooks, shared pages, modules, glossary."""
    uris = {file.src_uri for file in files}
    nav: list[object] = [{"Home": "index.md"}, {"Choose": "choose.md"}]
    for category in catalogue.categories:
        items: list[object] = [f"{category.name}/index.md"]
        for pattern in category.patterns:
            items.append({pattern.title: f"{pattern.key}.md"})
            notebook = f"notebooks/{pattern.key}.ipynb"
            if notebook in uris:
                items.append({"Notebook": notebook})
        nav.append({category.title: items})
    nav += _shared(catalogue, uris)
    shared = [{name.split(".")[-1]: site_pages.api_uri(name)} for name in modules if name.count(".") == 1]
    by_category: dict[str, list[object]] = {}
    for name in modules:
        if name.count(".") > 1:
            _, category_name, rest = name.split(".", 2)
            by_category.setdefault(category_name.capitalize(), []).append({rest: site_pages.api_uri(name)})
    nested = [{title: items} for title, items in by_category.items()]
    nav.append({"Modules": ["api/index.md", *shared, *nested]})
    nav += [{"Glossary": "glossary.md"}, {"Tags": "tags.md"}]
    return nav


def _shared(catalogue: Catalogue, uris: set[str]) -> list[object]:
    """Pages across patterns, such as docs/composing.md, each with the notebook of the same name."""
    own = {"index.md", "choose.md", "glossary.md", "tags.md"}
    items: list[object] = []
    for uri in sorted(uris):
        if "/" in uri or not uri.endswith(".md") or uri in own:
            continue
        meta, _ = front_matter((catalogue.root / "docs" / uri).read_text("utf-8"))
        items.append({meta["title"]: uri})
        notebook = f"notebooks/{uri.removesuffix('.md')}.ipynb"
        if notebook in uris:
            items.append({"Notebook": notebook})
    return [{"Together": items}] if items else []


def _search(uri: str, catalogue: Catalogue) -> dict[str, object]:
    """Patterns first; home, choose, category and tag pages only repeat them and stay out."""
    if uri.removesuffix(".md") in catalogue.patterns:
        return {"boost": 4}
    if uri in {"index.md", "choose.md", "tags.md", "api/index.md"} or uri.endswith("/index.md"):
        return {"exclude": True}
    if uri.endswith(".ipynb"):
        return {"boost": 0.5}
    return {"boost": 0.25} if uri.startswith("api/") else {"boost": 0.5}


def _generate(files: Files, config: MkDocsConfig, uri: str, edit_uri: str | None) -> None:
    # The content is made when links can be made, in on_page_markdown.
    file = File.generated(config, uri, content="\n")
    file.edit_uri = edit_uri
    files.append(file)


def _linker(page: Page, config: MkDocsConfig, files: Files) -> site_pages.Link:
    def link(uri: str) -> str:
        if uri.startswith("repo:"):
            return f"{_repository(config)}/blob/main/{uri.removeprefix('repo:')}"
        file = files.get_file_from_path(uri)
        if file is None:
            raise site_pages.Unmade(f"it should link to {uri}, and there is no such file")
        return file.url_relative_to(page.file)

    return link


def _repository(config: MkDocsConfig) -> str:
    return str(config.repo_url).rstrip("/")


def _root(config: MkDocsConfig) -> Path:
    return Path(config.config_file_path).parent
