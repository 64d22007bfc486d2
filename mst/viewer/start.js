// Finds viewers as they appear in the page, starts them, brings them what is found later, and stops those that have left.
import { fail } from "./page.js";
import { Viewer } from "./viewer.js";

const living = new Map();
const parsed = (template) => JSON.parse(template.content.textContent);

function start(root, source) {
  // A page may put new data into a root that it keeps: the viewer in it starts anew.
  living.get(root)?.viewer.stop();
  living.delete(root);
  source.remove();
  root.dataset.ready = "false";
  try {
    const viewer = new Viewer(root, parsed(source));
    const started = viewer.start();
    living.set(root, { viewer, started });
    started.catch((error) => {
      if (living.get(root)?.viewer === viewer) fail(root, error);
    });
  } catch (error) {
    fail(root, error);
  }
}

// What belongs to a scan that a viewer shows: maps ("take"), the spot that is chosen ("retarget"), or that no maps come ("settle").
function bring(template) {
  const sent = parsed(template);
  for (const [root, { viewer, started }] of living) {
    if (!sent.key || viewer.data.key !== sent.key) continue;
    const what = template.dataset.mst;
    // Gradio would write the next one into this one's place, where a template's content does not change.
    template.remove();
    if (what === "take") root.dataset.ready = "false";
    started.then(() => viewer[what](sent)).catch((error) => {
      if (living.get(root)?.viewer === viewer) fail(root, error);
    });
  }
}

function scanDocument() {
  for (const [root, { viewer }] of living) {
    if (!root.isConnected) {
      viewer.stop();
      living.delete(root);
    }
  }
  for (const root of /** @type {NodeListOf<HTMLElement>} */ (document.querySelectorAll(".mst-viewer"))) {
    const source = root.querySelector("template.mst-payload");
    if (source) start(root, source);
  }
  document.querySelectorAll("template[data-mst]").forEach(bring);
}

const begin = () => {
  scanDocument();
  new MutationObserver(scanDocument).observe(document.body, { childList: true, subtree: true });
};
if (document.body) begin();
else document.addEventListener("DOMContentLoaded", begin);
