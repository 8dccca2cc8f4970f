function prepare(form) {
  "use strict";
  var bits = Number(form.getAttribute("data-work")), begun = false, done = !bits, waiting = null;
  function field(name) { return form.elements["onda_" + name]; }

  // showIf: what is hidden is not sent. The server compares alike, and has the last word.
  function each(list, f) { Array.prototype.forEach.call(list, f); }
  function answers(name, type) {
    var list = [];
    each(form.elements, function (e) {
      var box = e.type === "checkbox";
      if (e.name !== name || e.disabled) { return; }
      if (box && type === "boolean") { list.push(String(e.checked)); return; }
      if ((box || e.type === "radio") && !e.checked) { return; }
      if (e.value.trim()) { list.push(e.value.trim()); }
    });
    return list;
  }
  function holds(c) {
    if (c.all) { return c.all.every(holds); }
    if (c.any) { return c.any.some(holds); }
    if (c.not) { return !holds(c.not); }
    var list = answers(c.field, c.type), as = c.type === "number" ? Number : String;
    var low = list.map(function (v) { return v.toLowerCase(); });
    if (c.known || !low.length) { return low.length > 0; }
    if (c.every) { return c.every.every(function (v) { return low.indexOf(v) >= 0; }); }
    return list.some(function (v, i) {
      if (c.in) { return c.in.some(function (w) { return as(w) === as(low[i]); }); }
      if (c.contains) { return low[i].indexOf(c.contains) >= 0; }
      if (c.starts) { return low[i].startsWith(c.starts); }
      if (c.ends) { return low[i].endsWith(c.ends); }
      if (c.matches) { return new RegExp(c.matches, "u").test(v); }
      if (c.type === "datetime") { v = (v + ":00").slice(0, 19); }
      if (c.yearly) { v = v.slice(5, 10); }
      v = as(v);
      return (!c.min || v > as(c.min) || !c.above && v === as(c.min)) && (!c.max || v < as(c.max) || !c.below && v === as(c.max));
    });
  }
  var conditional = form.querySelectorAll("[data-show-if]");
  function show() {
    each(conditional, function (box) {
      var shown = holds(JSON.parse(box.getAttribute("data-show-if")));
      box.hidden = !shown;
      each(box.querySelectorAll("input, select, textarea"), function (e) {
        e.disabled = !shown;
        if (box.hasAttribute("data-required") && e.type !== "checkbox" && e.type !== "radio") { e.required = true; }
      });
    });
  }
  if (conditional.length) {
    form.addEventListener("input", show);
    form.addEventListener("change", show);
    window.addEventListener("pageshow", show); // a browser may put back what was filled in before
    show();
  }

  // SHA-256 (FIPS 180-4) of a short ASCII text; gives its first 32 bits. Web Crypto is missing on pages without TLS, and slow for many short texts.
  var K = [], primes = [], n, i;
  for (n = 2; K.length < 64; n++) {
    if (primes.every(function (p) { return n % p; })) { primes.push(n); K.push(Math.pow(n, 1 / 3) * 4294967296 | 0); }
  }
  var H = primes.slice(0, 8).map(function (p) { return Math.sqrt(p) * 4294967296 | 0; }), w = new Int32Array(64);
  function turn(x, by) { return x >>> by | x << 32 - by; }
  function hash(text) {
    var words = new Int32Array((text.length + 8 >> 6) + 1 << 4), s = H.slice(), at, v, t1, t2;
    for (i = 0; i < text.length; i++) { words[i >> 2] |= text.charCodeAt(i) << 24 - i % 4 * 8; }
    words[i >> 2] |= 128 << 24 - i % 4 * 8;
    words[words.length - 1] = text.length * 8;
    for (at = 0; at < words.length; at += 16) {
      v = s.slice();
      for (i = 0; i < 64; i++) {
        w[i] = i < 16 ? words[at + i] : w[i - 16] + (turn(w[i - 15], 7) ^ turn(w[i - 15], 18) ^ w[i - 15] >>> 3) + w[i - 7] + (turn(w[i - 2], 17) ^ turn(w[i - 2], 19) ^ w[i - 2] >>> 10);
        t1 = v[7] + (turn(v[4], 6) ^ turn(v[4], 11) ^ turn(v[4], 25)) + (v[4] & v[5] ^ ~v[4] & v[6]) + K[i] + w[i] | 0;
        t2 = (turn(v[0], 2) ^ turn(v[0], 13) ^ turn(v[0], 22)) + (v[0] & v[1] ^ v[0] & v[2] ^ v[1] & v[2]) | 0;
        v.pop(); v.unshift(t1 + t2 | 0); v[4] = v[4] + t1 | 0;
      }
      for (i = 0; i < 8; i++) { s[i] = s[i] + v[i] | 0; }
    }
    return s[0] >>> 0;
  }

  // The work that the form asks for begins when somebody begins to fill it in, and leaves the page its time.
  var tries = 0;
  function work() {
    var question = field("moment").value + "." + field("once").value + ".", until = Date.now() + 15;
    do {
      if (hash(question + tries) < Math.pow(2, 32 - bits)) {
        field("proof").value = tries;
        done = true;
        if (waiting) { form.requestSubmit(waiting); }
        return;
      }
      tries++;
    } while (Date.now() < until);
    setTimeout(work, 0);
  }
  function begin() {
    if (!begun && !done) { begun = true; work(); }
  }
  form.addEventListener("focusin", begin);
  form.addEventListener("submit", function (e) {
    if (done) { return; }
    e.preventDefault();
    e.stopImmediatePropagation();
    waiting = e.submitter || form.querySelector("button");
    begin();
  });
}
