// Renders one diagram in a sandboxed frame: text in, SVG out. The frame has an opaque origin and no network access.

window.addEventListener("message", async ({ source, data }) => {
  if (source !== window.parent || typeof data?.text !== "string") return;
  try {
    mermaid.initialize({ startOnLoad: false, securityLevel: "strict", htmlLabels: false, flowchart: { htmlLabels: false }, theme: data.isDark ? "dark" : "neutral", fontFamily: "system-ui, sans-serif" });
    const { svg } = await mermaid.render("diagram", data.text);
    const parsed = new DOMParser().parseFromString(svg, "text/html").querySelector("svg");
    const [, , width, height] = (parsed.getAttribute("viewBox") ?? "0 0 600 400").split(" ");
    parsed.setAttribute("width", width);
    parsed.setAttribute("height", height);
    window.parent.postMessage({ svg: new XMLSerializer().serializeToString(parsed) }, "*");
  } catch {
    window.parent.postMessage({ svg: null }, "*");
  }
});
window.parent.postMessage({ type: "ready" }, "*");
