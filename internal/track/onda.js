/* Tells Onda of page views and events of this site.
 *
 *   <script src="https://LINKS.EXAMPLE/onda.js" data-key="onda_pk_..." async></script>
 *
 *   onda("track", "order.placed", {total: 120})   an event of your own
 *   onda("page", {category: "docs"})              a page view of your own; those of the browser's history are told without it,
 *                                                 unless the script has data-page="off"
 *   onda("consent", true)                         the visitor agrees to be known again; false: forget
 *
 * Who comes by a link of a mail has onda_c in the address, which is taken out of it at once. It is told with what a visitor
 * does who agreed to be known, and Onda knows by it whose click it was.
 *
 * Nothing is stored in the browser before consent: data-consent="granted" on the script says that the site has it. A visitor's
 * id is a cookie of this site alone, kept for 30 days; it is never made where the browser says Global Privacy Control. */
(function () {
  "use strict";
  var script = document.currentScript;
  if (!script) { return; }
  var key = script.getAttribute("data-key");
  var to = new URL("e", script.src).href;
  var before = window.onda && window.onda.q || [];
  var denied = navigator.globalPrivacyControl === true;
  var click = "", found = /^([^#]*)([?&])onda_c=([^&#]*)(&?)/.exec(location.href);
  if (found) {
    click = found[3];
    history.replaceState(history.state, "", found[1] + (found[4] && found[2]) + location.href.slice(found[0].length));
  }

  function page() { return location.href.split("#")[0]; }
  function visitor() {
    var found = /(?:^|; )onda_id=([A-Za-z0-9-]+)/.exec(document.cookie);
    return found ? found[1] : "";
  }
  function keep(id, seconds) {
    document.cookie = "onda_id=" + id + "; Path=/; Max-Age=" + seconds + "; SameSite=Lax" + (location.protocol === "https:" ? "; Secure" : "");
  }
  function random() {
    var b = crypto.getRandomValues(new Uint8Array(16)), s = "";
    for (var i = 0; i < b.length; i++) { s += (b[i] + 256).toString(16).slice(1); }
    return s;
  }
  function send(type, name, properties) {
    var id = visitor();
    if (id) { keep(id, 2592000); }
    return fetch(to, {
      method: "POST", keepalive: true, credentials: "omit", referrerPolicy: "no-referrer",
      body: JSON.stringify({
        key: key, type: type, name: name, visitor: id, click: id && click, messageId: random(), properties: properties || {},
        url: page(), title: document.title, referrer: document.referrer
      })
    }).then(function (a) { if (id && a.ok) { click = ""; } }).catch(function () { /* the page goes on without */ });
  }
  function onda(what, a, b) {
    if (what === "track") { return send("track", String(a), b); }
    if (what === "page") { return send("page", "", a); }
    if (what === "consent") {
      if (a && !denied) { keep(visitor() || random(), 2592000); } else { keep("", 0); }
    }
  }
  if (denied) { keep("", 0); } else if (script.getAttribute("data-consent") === "granted" && !visitor()) { keep(random(), 2592000); }
  window.onda = onda;
  for (var i = 0; i < before.length; i++) { onda.apply(null, before[i]); }
  if (script.getAttribute("data-page") === "off") { return; }
  var last, push = history.pushState;
  function look() { if (page() !== last) { last = page(); onda("page"); } }
  history.pushState = function () { push.apply(history, arguments); setTimeout(look); /* once the page has its title */ };
  addEventListener("popstate", look);
  look();
})();
