// The page's colours.

const NAMES = ["blue", "orange", "green", "red", "purple", "grey", "ink"];
const LIGHT = ["#2b6cd4", "#d9730d", "#1f8a4c", "#d3352f", "#7b4fc9", "#7d8590", "#1f2430"];
const DARK = ["#6aa8ff", "#ffb26b", "#6fdc98", "#ff7a70", "#b99aff", "#98a1ae", "#e8ebf0"];

export const isDark = () => document.body.dataset.jpThemeLight === "false";

export type Colors = ReturnType<typeof theme>;

/** The colours of this moment, or plain ones for light or dark paper whatever the page wears. */
export function theme(wanted?: "light" | "dark") {
  const dark = wanted ? wanted === "dark" : isDark(), colors = dark ? DARK : LIGHT;
  const style = getComputedStyle(document.body);
  const variable = (name: string, otherwise: string) => (
    (!wanted && style.getPropertyValue(name).trim()) || otherwise);
  return {
    dark,
    text: variable("--jp-ui-font-color1", dark ? "#e0e0e0" : "#222"),
    soft: variable("--jp-ui-font-color2", dark ? "#a0a0a0" : "#666"),
    paper: variable("--jp-layout-color1", dark ? "#111" : "#fff"),
    font: style.getPropertyValue("--jp-ui-font-family").trim() || "sans-serif",
    grid: dark ? "rgba(255,255,255,0.09)" : "rgba(0,0,0,0.07)",
    line: dark ? "rgba(255,255,255,0.30)" : "rgba(0,0,0,0.28)",
    color: (name: string) => colors[NAMES.indexOf(name)] ?? name,
  };
}
