// Put behind panel.js, whose export is `panel` here: a button named "play" moves the slider named "depth" from end to end.

const NOTCH_MS = 80;

export default () => {
  const base = panel();

  function render({ el, ...rest }) {
    const leave = base.render({ el, ...rest });
    let timer = null;
    const slider = () => el.querySelector("[data-name=depth] input"), button = () => el.querySelector("[data-name=play] button");

    function stop() {
      clearInterval(timer);
      timer = null;
      if (button()) button().textContent = "▶ Play";
    }

    function move(value) {
      slider().value = value;
      slider().dispatchEvent(new Event("input"));
    }

    function play() {
      move(Number(slider().value) < Number(slider().max) ? slider().value : 0);
      button().textContent = "❚❚ Stop";
      timer = setInterval(() => {
        move(Number(slider().value) + 1);
        if (slider().value === slider().max) stop();
      }, NOTCH_MS);
    }

    el.addEventListener("click", (event) => {
      if (event.target === button()) timer === null ? play() : stop();
    });
    for (const kind of ["pointerdown", "keydown"]) {
      el.addEventListener(kind, (event) => { if (event.target === slider() && timer !== null) stop(); });
    }
    return () => { stop(); leave(); };
  }

  return { ...base, render };
};
