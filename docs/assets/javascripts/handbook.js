/* Mermaid on demand, the symptom filter, and drawings that enlarge. */
(() => {
  const here = document.currentScript.src;
  const vendored = new URL("../vendor/mermaid/mermaid.min.js", here).href;

  // Material fetches mermaid from another host when there is no global of that name. This one is there
  // from the start, and loads the vendored file (3.5 MB) when the first diagram of the visit is drawn.
  // What Material's own styles leave in mermaid's colours, which are made for a white page.
  const legible = `
    .sectionTitle, .sectionTitle > tspan, .noteText > tspan { fill: var(--md-mermaid-edge-color) !important }
    .actor-line { stroke: var(--md-default-fg-color--lighter) !important }
    .labelText, .labelText > tspan { fill: var(--md-mermaid-label-fg-color) !important }
    .labelBox { fill: var(--md-code-bg-color) !important; stroke: var(--md-default-fg-color--lighter) !important }
    .loopLine { stroke: var(--md-default-fg-color--light) !important }
    .note { stroke: var(--md-default-fg-color--lighter) !important }
  `;

  let loading;
  let settings;
  const load = () =>
    (loading ??= new Promise((resolve, reject) => {
      const script = document.createElement("script");
      script.src = vendored;
      script.onload = () => {
        window.mermaid.initialize(settings);
        resolve(window.mermaid);
      };
      script.onerror = () => reject(new Error(`could not load ${vendored}`));
      document.head.append(script);
    }));
  window.mermaid = {
    initialize(given) {
      settings = { ...given, themeCSS: given.themeCSS + legible };
    },
    async render(...args) {
      const drawn = await (await load()).render(...args);
      // On a phone a wide diagram is scrolled and not shrunk until nobody can read it.
      const narrow = (style, width) => `${style}; min-width: ${Math.min(width, 560)}px`;
      return { ...drawn, svg: drawn.svg.replace(/max-width: ([\d.]+)px/, narrow) };
    },
  };

  const filter = (index) => {
    const label = index.querySelector(".filter");
    const box = label.querySelector("input");
    const rows = [...index.querySelectorAll("li")];
    const none = index.querySelector(".none");
    label.hidden = false;
    box.addEventListener("input", () => {
      const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      for (const row of rows) {
        const text = row.textContent.toLowerCase();
        row.hidden = !words.every((word) => text.includes(word));
        shown += !row.hidden;
      }
      none.hidden = shown > 0;
    });
  };

  const enlarge = (link) => {
    link.addEventListener("click", (event) => {
      if (event.metaKey || event.ctrlKey || event.shiftKey) return;
      event.preventDefault();
      event.stopPropagation();
      const dialog = document.createElement("dialog");
      const picture = link.querySelector("img").cloneNode();
      picture.loading = "eager";
      const close = document.createElement("button");
      close.textContent = "Close";
      dialog.className = "enlarged";
      dialog.setAttribute("aria-label", picture.alt);
      dialog.append(picture, close);
      dialog.addEventListener("click", () => dialog.close());
      dialog.addEventListener("close", () => dialog.remove());
      document.body.append(dialog);
      dialog.showModal();
    });
  };

  // Material gives its search the role of a dialog and no name.
  document.querySelector(".md-search")?.setAttribute("aria-label", "Search");

  // Instant navigation keeps the old page's place where it should go to an anchor, if the new page is slow
  // to come. So what was clicked is remembered, and gone to when the page is there.
  let wanted;
  document.addEventListener(
    "click",
    (event) => {
      const link = event.target.closest?.("a[href]");
      wanted = link?.hash && link.pathname !== location.pathname ? link.href : undefined;
    },
    true,
  );

  // Runs again after each instant navigation.
  window.document$.subscribe(() => {
    if (wanted === location.href) {
      document.getElementById(decodeURIComponent(location.hash.slice(1)))?.scrollIntoView();
    }
    wanted = undefined;
    document.querySelectorAll("[data-filter]").forEach(filter);
    document.querySelectorAll("a.enlarge").forEach(enlarge);
  });
})();
