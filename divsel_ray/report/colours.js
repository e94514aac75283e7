// Figures take the page's own text and grid colours, light or dark.
const recolour = () => {
  const style = getComputedStyle(document.documentElement);
  const text = style.getPropertyValue("--muted").trim(), grid = style.getPropertyValue("--line").trim();
  for (const figure of document.querySelectorAll(".plotly-graph-div")) {
    Plotly.relayout(figure, {"font.color": text, "yaxis.gridcolor": grid});
  }
};
recolour();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", recolour);
