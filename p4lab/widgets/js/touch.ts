// How controls and the kernel take turns.

const TELL_MS = 60;

/** Follow a drag live, but not with every pixel: `send` at once, then at most every 60 ms, and where it ends. */
export function throttled(send: () => void) {
  let resting = true, again = false;
  return function moved() {
    again = !resting;
    if (!resting) return;
    resting = false;
    send();
    setTimeout(() => {
      resting = true;
      if (again) moved();
    }, TELL_MS);
  };
}

/**
 * Show what the kernel says, but not under the user's finger: what arrives within `ms` of a touch may have been said
 * before the kernel heard of it. The last of that is shown afterwards.
 */
export function patient<Value>(ms: number, show: (value: Value) => void) {
  let until = -Infinity, newest: Value, waiting = false;
  function settle() {
    const left = until - performance.now();
    waiting = left > 0;
    if (waiting) setTimeout(settle, left);
    else show(newest);
  }
  return {
    touched() { until = performance.now() + ms; },
    show(value: Value) {
      newest = value;
      if (!waiting) settle();
    },
  };
}

/** Call `commit` when the user is done with a field: Enter, or another control gets the focus. */
export function onCommit(input: HTMLInputElement, commit: (text: string) => void) {
  let committed = input.value;
  const done = () => {
    if (input.value === committed) return;
    committed = input.value;
    commit(committed);
  };
  input.addEventListener("focus", () => { committed = input.value; });
  for (const kind of ["change", "blur"]) input.addEventListener(kind, done);
  input.addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    done();
    input.blur();
  });
}

/** Distance on a scale that is logarithmic on both sides of 0. */
const distance = (a: number, b: number) => Math.abs(Math.asinh(1e6 * a) - Math.asinh(1e6 * b));

/** The place of the choice that is nearest to a value. */
export const nearest = (choices: number[], value: number) => (
  choices.reduce((best, choice, i) => (distance(choice, value) < distance(choices[best], value) ? i : best), 0));

const NOTCH_MS = 80;

/** Move a slider from notch to notch to its end; `playing` hears when that begins and ends, `rest` says how quickly. */
export function player(slider: HTMLInputElement, playing: (going: boolean) => void, rest = () => NOTCH_MS) {
  let timer: number | undefined;
  function move(place: number) {
    slider.value = String(place);
    slider.dispatchEvent(new Event("input"));
  }
  function stop() {
    clearTimeout(timer);
    timer = undefined;
    playing(false);
  }
  function next() {
    if (slider.isConnected) move(slider.valueAsNumber + 1);
    if (!slider.isConnected || slider.value === slider.max) stop();
    else timer = setTimeout(next, rest());
  }
  function play() {
    move(slider.valueAsNumber < Number(slider.max) ? slider.valueAsNumber : 0);
    playing(true);
    timer = setTimeout(next, rest());
  }
  for (const kind of ["pointerdown", "keydown"]) slider.addEventListener(kind, stop);
  return () => (timer === undefined ? play() : stop());
}
