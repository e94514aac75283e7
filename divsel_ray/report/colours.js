// Figures take the page's own text and grid colours, light or dark.
const recolour = () => {
  const style = getComputedStyle(document.documentElement);
  const [text, grid, strong, soft] = ["--muted", "--line", "--text", "--soft"].map((name) => style.getPropertyValue(name).trim());
  for (const figure of document.querySelectorAll(".plotly-graph-div")) {
    const marked = (meta) => [...figure.data.keys()].filter((at) => figure.data[at].meta === meta);
    const label = {"hoverlabel.bgcolor": soft, "hoverlabel.font.color": strong, "hoverlabel.bordercolor": grid};
    Plotly.relayout(figure, {"font.color": text, "yaxis.gridcolor": grid, ...(figure.id === "figure-map" ? label : {})});
    if (marked("selected").length) Plotly.restyle(figure, {"marker.line.color": strong}, marked("selected"));
    if (marked("name").length) Plotly.restyle(figure, {"textfont.color": strong}, marked("name"));
  }
};
recolour();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", recolour);
