(function () {
  "use strict";
  var script = document.currentScript;
  var host = script && script.getAttribute("data-into") ? document.querySelector(script.getAttribute("data-into")) : null;
  if (!host) {
    host = document.createElement("div");
    if (script) { script.after(host); } else { document.body.appendChild(host); }
  }
  // The form's style stays within, and the page's stays without.
  var root = host.attachShadow({mode: "open"});
  var sheet = new CSSStyleSheet();
  sheet.replaceSync(STYLE);
  root.adoptedStyleSheets = [sheet];

  function show(html, focus) {
    var box = document.createElement("div");
    box.className = "embedded";
    box.lang = LANG;
    box.innerHTML = html; // made by the server that this script is from
    root.replaceChildren(box);
    var form = box.querySelector("form");
    if (form) {
      prepare(form);
      var id = /(?:^|; )onda_id=([A-Za-z0-9-]+)/.exec(document.cookie);
      if (id) { form.elements["onda_visitor"].value = id[1]; }
      form.addEventListener("submit", send);
    }
    box.querySelectorAll(".summary a").forEach(function (a) {
      a.addEventListener("click", function (e) {
        var to = box.querySelector("[id='" + a.getAttribute("href").slice(1) + "']");
        if (to) { e.preventDefault(); to.focus(); }
      });
    });
    var summary = box.querySelector(".summary, .result");
    if (focus && summary) { summary.focus(); }
  }
  /* form.js */
  function send(e) {
    e.preventDefault();
    var form = e.target, button = form.querySelector("button"), data = new FormData(form);
    if (form.enctype !== "multipart/form-data") { data = new URLSearchParams(data); } // shorter, where there are no files
    button.disabled = true;
    fetch(ACTION, {
      method: "POST", credentials: "omit", headers: {"Accept": "application/json"}, body: data
    }).then(function (r) { return r.json(); }).then(function (a) {
      if (a.redirect) { location.assign(a.redirect); return; }
      if (a.html) { show(a.html, true); return; }
      throw new Error(a.title);
    }).catch(function () { form.submit(); }); // the form's own page says what is the matter
  }
  show(FORM, false);
})();
