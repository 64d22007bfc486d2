// Finds viewers and locators as they appear in the page, starts them, and stops those that have left it.
import { fail } from "./page.js";
import { Viewer } from "./viewer.js";
import { Locator } from "./locator.js";

const living = new Map();
function scanDocument() {
  for (const [root, viewer] of living) {
    if (!root.isConnected) {
      viewer.stop();
      living.delete(root);
    }
  }
  for (const root of /** @type {NodeListOf<HTMLElement>} */ (document.querySelectorAll(".mst-viewer, .mst-locator"))) {
    const source = /** @type {HTMLTemplateElement | null} */ (root.querySelector("template.mst-payload"));
    if (!source) continue;
    // A page may put new data into a root that it keeps: the viewer in it starts anew.
    living.get(root)?.stop();
    living.delete(root);
    source.remove();
    root.dataset.ready = "false";
    let viewer;
    try {
      const payload = JSON.parse(source.content.textContent);
      viewer = root.classList.contains("mst-viewer") ? new Viewer(root, payload) : new Locator(root, payload);
    } catch (error) {
      fail(root, error);
      continue;
    }
    living.set(root, viewer);
    viewer.start().catch((error) => {
      if (living.get(root) === viewer) fail(root, error);
    });
  }
}

const begin = () => {
  scanDocument();
  new MutationObserver(scanDocument).observe(document.body, { childList: true, subtree: true });
};
if (document.body) begin();
else document.addEventListener("DOMContentLoaded", begin);
