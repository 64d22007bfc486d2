// What the page adds to Gradio's own behaviour: a click in the locator becomes the text of the centre field,
// so that the field stays the one place that says where the models will look.
(() => {
  const setText = (field, text) => {
    const prototype = field.tagName === "TEXTAREA" ? HTMLTextAreaElement.prototype : HTMLInputElement.prototype;
    Object.getOwnPropertyDescriptor(prototype, "value").set.call(field, text);
    field.dispatchEvent(new Event("input", { bubbles: true }));
  };
  document.addEventListener("mst-center", (event) => {
    const field = document.querySelector("#center textarea, #center input");
    const { x, y, z } = event.detail;
    if (field) setText(field, [x, y, z].map((v) => Number(v).toFixed(1)).join(", "));
  });
  // Gradio has no translation for this button's name and reads out the key.
  const rename = () => document.querySelectorAll("[aria-label='common.upload']").forEach((button) => {
    button.setAttribute("aria-label", "Add files");
    button.title = "Add files";
  });
  new MutationObserver(rename).observe(document.documentElement, { childList: true, subtree: true });
})();
