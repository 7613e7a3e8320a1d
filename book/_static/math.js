// Renders the mathematics of a page with the KaTeX that lies beside this file: no network, no second pass.
// Sphinx writes inline formulas as <span class="math">\( ... \)</span> and displayed ones as
// <div class="math">\[ ... \]</div>; a bare environment (\begin{align} ...) is a displayed one too.
(function () {
  "use strict";
  function render() {
    document.querySelectorAll("span.math, div.math").forEach(function (element) {
      element.childNodes.forEach(function (node) {
        if (node.nodeType !== Node.TEXT_NODE || !node.data.trim()) return;
        var source = node.data.trim();
        var displayed = !source.startsWith("\\(");
        var formula = source.replace(/^\\[([]/, "").replace(/\\[)\]]$/, "");
        var target = document.createElement("span");
        target.className = "formula";
        window.katex.render(formula, target, { displayMode: displayed, throwOnError: false });
        node.replaceWith(target);
      });
    });
  }
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", render);
  else render();
})();
