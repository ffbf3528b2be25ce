// What keys do that are meant for the lab as a whole, and not for one of its controls.

const OWN = "input, select, button, textarea, a, [tabindex]:not(.p4-lab)";

/** Press a button of the lab; false if it cannot be pressed now. */
function press(lab: HTMLElement, name: string) {
  const node = lab.querySelector<HTMLButtonElement>(`.p4-item-button[data-name="${name}"] button`);
  if (!node || node.disabled) return false;
  node.click();
  return true;
}

/** Go one moment back or on in time; on from the present is a step. */
function step(lab: HTMLElement, by: number) {
  const slider = lab.querySelector<HTMLInputElement>(".p4-scrubber");
  if (!slider || (by > 0 && slider.value === slider.max)) return press(lab, "step");
  if (slider.disabled) return false;
  slider.value = String(slider.valueAsNumber + by);
  slider.dispatchEvent(new Event("input"));
  return true;
}

/** Do what a key is for; returns whether it is for anything. */
export function act(lab: HTMLElement, key: string) {
  if (key === " ") return press(lab, "start");
  if (key === "ArrowLeft") return step(lab, -1);
  return key === "ArrowRight" && step(lab, 1);
}

/** Let a lab have the focus, and listen to its keys: Space starts and pauses, arrows go through time. */
export function listen(lab: HTMLElement, title: string) {
  if (lab.dataset.keys) return;
  lab.dataset.keys = "true";
  lab.dataset.lmSuppressShortcuts = "true"; // keys of the lab are not for the notebook
  lab.tabIndex = 0;
  lab.setAttribute("role", "group");
  lab.setAttribute("aria-label", `${title}. Space starts and pauses, arrow keys go through time.`);
  lab.addEventListener("keydown", (event) => {
    const own = (event.target as HTMLElement).closest(OWN), { altKey, ctrlKey, metaKey, shiftKey, key } = event;
    if ((own && lab.contains(own)) || altKey || ctrlKey || metaKey || shiftKey || !act(lab, key)) return;
    event.preventDefault();
    event.stopPropagation();
  });
}
