// What the page adds to Gradio's own behaviour: a spot that is chosen in the viewer becomes the text of the centre field,
// so that the field stays the one place that says where the models will look.
(() => {
  const setText = (field, text) => {
    const prototype = field.tagName === "TEXTAREA" ? HTMLTextAreaElement.prototype : HTMLInputElement.prototype;
    Object.getOwnPropertyDescriptor(prototype, "value").set.call(field, text);
    field.dispatchEvent(new Event("input", { bubbles: true }));
  };
  const frame = () => new Promise((resolve) => requestAnimationFrame(resolve));
  const centerField = () => document.querySelector("#center textarea, #center input");
  const setCenter = async ({ x, y, z }) => {
    // What is closed is not in the page.
    if (!centerField()) {
      /** @type {HTMLElement | null} */ (document.querySelector("#where button"))?.click();
      for (let n = 0; n < 60 && !centerField(); n++) await frame();
    }
    setText(centerField(), [x, y, z].map((v) => Number(v).toFixed(1)).join(", "));
  };
  document.addEventListener("mst-center", (/** @type {any} */ event) => setCenter(event.detail));
  document.addEventListener("mst-explain", async (/** @type {any} */ event) => {
    await setCenter(event.detail);
    // Gradio takes a field's text into its own state with the next frame.
    await frame();
    await frame();
    /** @type {HTMLElement | null} */ (document.querySelector("#run"))?.click();
  });

  // The viewer waits for what was asked: nobody takes what it shows now for the answer.
  const viewers = () => /** @type {NodeListOf<HTMLElement>} */ (document.querySelectorAll(".mst-viewer"));
  const wait = () => viewers().forEach((root) => {
    root.dataset.ready = "false";
    root.setAttribute("data-busy", "");
  });
  const release = () => viewers().forEach((root) => {
    if (!root.hasAttribute("data-busy")) return;
    root.removeAttribute("data-busy");
    root.dataset.ready = "true";
  });

  // An answer belongs to what was chosen when it was asked for. As soon as anything else is chosen it is dimmed and says
  // what it was made for; explore.py calls these functions with the values of all fields.
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
    viewers().forEach((root) => root.toggleAttribute("data-stale", text !== ""));
  };
  // The address names the example that is open, so that a link or a reload opens it again; nothing names a scan of one's own.
  const addressed = (files) => {
    const name = files?.length === 1 ? files[0].orig_name ?? files[0].path?.split("/").pop() ?? "" : "";
    const example = /^simulated-chest-([a-z-]+)\.nii\.gz$/.exec(name)?.[1];
    const address = new URL(location.href);
    if (!files?.length || address.searchParams.get("example") === (example ?? "none")) return;
    address.searchParams.set("example", example ?? "none");
    history.replaceState(history.state, "", address);
  };
  window.mstPage = {
    // The run button was pressed.
    asks: (...inputs) => { asked = now = keyOf(inputs); wait(); mark(); return []; },
    // A field was changed, by a person or by the page, which drops a run that is under way.
    changes: (...inputs) => {
      addressed(inputs[0]);
      now = keyOf(inputs);
      if (now !== asked) release();
      mark();
      return [];
    },
    // The page opened with answers, which are to what its fields now say.
    adopts: (...inputs) => { addressed(inputs[0]); asked = made = now = keyOf(inputs); mark(); return []; },
    // No answer will come.
    releases: () => { release(); return []; },
  };
  // Gradio has no translation for this button's name and reads out the key.
  const rename = () => document.querySelectorAll("[aria-label='common.upload']").forEach((/** @type {HTMLElement} */ button) => {
    button.setAttribute("aria-label", "Add files");
    button.title = "Add files";
  });
  new MutationObserver(() => { rename(); mark(); }).observe(document.documentElement, { childList: true, subtree: true });
})();
