// What the page adds to Gradio's own behaviour: a click in the locator becomes the text of the centre field,
// so that the field stays the one place that says where the models will look.
(() => {
  const setText = (field, text) => {
    const prototype = field.tagName === "TEXTAREA" ? HTMLTextAreaElement.prototype : HTMLInputElement.prototype;
    Object.getOwnPropertyDescriptor(prototype, "value").set.call(field, text);
    field.dispatchEvent(new Event("input", { bubbles: true }));
  };
  document.addEventListener("mst-center", (/** @type {any} */ event) => {
    const field = document.querySelector("#center textarea, #center input");
    const { x, y, z } = event.detail;
    if (field) setText(field, [x, y, z].map((v) => Number(v).toFixed(1)).join(", "));
  });
  // An answer belongs to what was chosen when it was asked for. As soon as anything else is chosen it is dimmed and says
  // what it was made for; explore.py calls `asks` and `changes` with the values of all fields.
  let asked = null, made = null, now = null, run = null;
  const keyOf = (inputs) => {
    const plain = (value) => (Array.isArray(value) ? value.map(plain) : value?.path ?? value);
    return JSON.stringify(inputs.map((value) => (value?.length === 0 ? null : plain(value) ?? null)));
  };
  const mark = () => {
    const answers = /** @type {HTMLElement | null} */ (document.querySelector("#results .mst-answers"));
    if (!answers) return;
    if (answers.dataset.run !== run) {
      run = answers.dataset.run;
      made = asked;
    }
    const text = now === made ? "" : answers.dataset.madeFor;
    const note = answers.querySelector(".mst-stale");
    if (note.textContent !== text) note.textContent = text;
    answers.toggleAttribute("data-stale", text !== "");
  };
  window.mstPage = {
    asks: (...inputs) => { asked = now = keyOf(inputs); mark(); return []; },
    changes: (...inputs) => { now = keyOf(inputs); mark(); return []; },
  };
  // Gradio has no translation for this button's name and reads out the key.
  const rename = () => document.querySelectorAll("[aria-label='common.upload']").forEach((/** @type {HTMLElement} */ button) => {
    button.setAttribute("aria-label", "Add files");
    button.title = "Add files";
  });
  new MutationObserver(() => { rename(); mark(); }).observe(document.documentElement, { childList: true, subtree: true });
})();
