// Small helpers for building the page: elements, Plotly's script, the theme's colours, errors.

export function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "class") node.className = value;
    else if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value !== null && value !== undefined) node.setAttribute(key, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

let plotlyPromise = null;
export function loadPlotly() {
  if (window.Plotly) return Promise.resolve(window.Plotly);
  plotlyPromise ??= new Promise((resolve, reject) => {
    const script = element("script", { src: window.MST_PLOTLY_URL });
    script.onload = () => resolve(window.Plotly);
    script.onerror = () => {
      plotlyPromise = null;
      reject(new Error("Plotly's script could not be loaded from this server; reload the page."));
    };
    document.head.append(script);
  });
  return plotlyPromise;
}

export function fail(root, error) {
  console.error(error);
  root.replaceChildren(
    element("p", { class: "mstv-error", role: "alert" }, `The viewer could not be drawn: ${error.message || error}`),
  );
  root.dataset.ready = "error";
}

// Canvas and Plotly take no CSS variables: what they need of the theme is read when they draw.
export function theme(root) {
  const style = getComputedStyle(root);
  const get = (name) => style.getPropertyValue(name).trim();
  return { text: get("--mstv-text"), muted: get("--mstv-muted"), line: get("--mstv-line"), card: get("--mstv-card") };
}
