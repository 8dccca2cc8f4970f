// Package browsertest opens pages in a real Chromium, as visitors do: on a phone and on a desktop, with scripts and without. It is for tests only.
package browsertest

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
)

// patience is how long one page may take altogether.
const patience = 2 * time.Minute

// Visitor is how somebody looks at a page.
type Visitor struct {
	Name          string
	Width, Height int64
	// NoScripts is a browser in which scripts are turned off.
	NoScripts bool
	// Dark is one that asks for dark pages.
	Dark bool
	// Agent is what it says that it is, where it must not say that it is a test.
	Agent string
}

// Visitors are those whom every page must serve.
func Visitors() []Visitor {
	return []Visitor{
		{Name: "phone", Width: 390, Height: 844},
		{Name: "desktop", Width: 1280, Height: 900},
		{Name: "phone without scripts, dark", Width: 320, Height: 640, NoScripts: true, Dark: true},
		{Name: "desktop without scripts", Width: 1280, Height: 900, NoScripts: true},
	}
}

// Browser is one Chromium process of a test.
type Browser struct{ allocator context.Context }

// Start starts Chromium, and ends it with the test. There being none is a failure: make test installs Debian's.
func Start(tb testing.TB) *Browser {
	tb.Helper()
	path := ""
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if p, err := exec.LookPath(name); err == nil {
			path = p
			break
		}
	}
	if path == "" {
		tb.Fatal("no Chromium on the path: install Debian's package chromium (make test does)")
	}
	ctx, cancel := chromedp.NewExecAllocator(context.Background(), chromedp.ExecPath(path), chromedp.Headless, chromedp.NoSandbox, chromedp.DisableGPU, chromedp.NoFirstRun,
		chromedp.WSURLReadTimeout(patience), chromedp.Flag("disable-quic", true), chromedp.Flag("disable-component-update", true),
		chromedp.Flag("disable-background-networking", true), chromedp.Flag("disable-sync", true), chromedp.Flag("hide-scrollbars", true))
	tb.Cleanup(cancel)
	b, stop := chromedp.NewContext(ctx)
	tb.Cleanup(stop)
	if err := chromedp.Do(b); err != nil {
		tb.Fatalf("start Chromium: %v", err)
	}
	return &Browser{b}
}

// Tab is one page of a visitor.
type Tab struct {
	Visitor
	open context.Context // as long as the tab is there
	ctx  context.Context // as long as the page may take
	t    testing.TB

	mu       sync.Mutex
	messages []string
	requests []string
}

// Open opens a page.
func (b *Browser) Open(tb testing.TB, v Visitor, url string) *Tab {
	tb.Helper()
	tab := &Tab{Visitor: v, t: tb}
	ctx, cancel := chromedp.NewContext(b.allocator, chromedp.WithNewBrowserContext(), chromedp.WithListener(tab.listen))
	tb.Cleanup(cancel)
	tab.open = ctx
	tab.renew()
	view := []chromedp.EmulateViewportOption{}
	if v.Width < 700 {
		view = append(view, chromedp.EmulateMobile, chromedp.EmulateTouch)
	}
	scheme := "light"
	if v.Dark {
		scheme = "dark"
	}
	tab.Do(
		chromedp.EmulateViewport(v.Width, v.Height, view...),
		call(emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}}}),
		call(emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: v.NoScripts}),
	)
	if v.Agent != "" {
		tab.Do(call(emulation.SetUserAgentOverride, emulation.SetUserAgentOverrideParams{UserAgent: v.Agent}))
	}
	tab.Do(chromedp.Navigate(url))
	return tab
}

func call[P any](c cdp.Command[P, cdp.Empty], params P) chromedp.Action[chromedp.Void] {
	return chromedp.Func(func(ctx context.Context, t *chromedp.Target) error {
		_, err := cdp.Call(ctx, t, c, params)
		return err
	})
}

// listen notes what the browser complains of, what scripts write on the console, and what is asked for. Pages need no icon.
func (tab *Tab) listen(e any) {
	tab.mu.Lock()
	defer tab.mu.Unlock()
	switch e := e.(type) {
	case *log.EventEntryAdded:
		if e.Entry.Level == log.EntryLevelError && !strings.Contains(e.Entry.URL, "favicon") {
			tab.messages = append(tab.messages, e.Entry.Text)
		}
	case *runtime.EventExceptionThrown:
		tab.messages = append(tab.messages, e.ExceptionDetails.Text)
	case *runtime.EventConsoleAPICalled:
		tab.messages = append(tab.messages, "a script wrote on the console")
	case *network.EventRequestWillBeSent:
		tab.requests = append(tab.requests, e.Request.URL)
	}
}

// Do runs actions.
func (tab *Tab) Do(actions ...chromedp.Action[chromedp.Void]) {
	tab.t.Helper()
	if err := chromedp.Do(tab.ctx, actions...); err != nil {
		tab.t.Fatalf("%s: %v", tab.Name, err)
	}
}

// Submit presses a button and waits for the page that it leads to.
func (tab *Tab) Submit(button string) {
	tab.t.Helper()
	if _, err := chromedp.RunResponse(tab.ctx, chromedp.Click(chromedp.CSS(button))); err != nil {
		tab.t.Fatalf("%s: press %s: %v", tab.Name, button, err)
	}
	tab.Do(chromedp.WaitReady(chromedp.CSS("h1")))
}

// SubmitByKey presses a button by the keyboard alone, and waits for the page that it leads to.
func (tab *Tab) SubmitByKey(button string) {
	tab.t.Helper()
	if _, err := chromedp.RunResponse(tab.ctx, chromedp.Focus(chromedp.CSS(button)), chromedp.KeyEvent(kb.Enter)); err != nil {
		tab.t.Fatalf("%s: press a key: %v", tab.Name, err)
	}
	tab.Do(chromedp.WaitReady(chromedp.CSS("h1")))
}

// Text gives the text of what the selector finds first.
func (tab *Tab) Text(selector string) string {
	tab.t.Helper()
	s, err := chromedp.Run(tab.ctx, chromedp.Text(chromedp.CSS(selector)))
	if err != nil {
		tab.t.Fatalf("%s: read %s: %v", tab.Name, selector, err)
	}
	return s
}

// Eval evaluates an expression of JavaScript in the page; the inspector may also where the page's own scripts are turned off.
func Eval[T any](tab *Tab, expression string) T {
	tab.t.Helper()
	v, err := chromedp.Run(tab.ctx, chromedp.Evaluate[T](expression))
	if err != nil {
		tab.t.Fatalf("%s: evaluate: %v", tab.Name, err)
	}
	return v
}

// Until waits for an expression of JavaScript to be true, for as long as a page has patience: chromedp's own limit is shorter.
func (tab *Tab) Until(expression string) {
	tab.t.Helper()
	if _, err := chromedp.Run(tab.ctx, chromedp.Poll[bool](expression, chromedp.WithPollingTimeout(0))); err != nil {
		tab.t.Fatalf("%s: wait for %s: %v", tab.Name, expression, err)
	}
}

// renew gives the next page all of the patience.
func (tab *Tab) renew() {
	ctx, stop := context.WithTimeout(tab.open, patience)
	tab.t.Cleanup(stop)
	tab.ctx = ctx
}

// Go opens another page.
func (tab *Tab) Go(url string) {
	tab.t.Helper()
	tab.renew()
	tab.Do(chromedp.Navigate(url))
}

// Type types into an input.
func (tab *Tab) Type(selector, text string) {
	tab.t.Helper()
	tab.Do(chromedp.SendKeys(chromedp.CSS(selector), text))
}

// Set gives an input or a select a value.
func (tab *Tab) Set(selector, value string) {
	tab.t.Helper()
	tab.Do(chromedp.SetValue(chromedp.CSS(selector), value))
}

// Choose chooses files for an input; what the selector is of, an expression of JavaScript tells, so that it may be in a shadow tree.
func (tab *Tab) Choose(element string, files ...string) {
	tab.t.Helper()
	tab.Do(chromedp.SetUploadFiles(chromedp.JSPath(element), files))
}

// Tick ticks a box with the mouse, or with the keyboard alone.
func (tab *Tab) Tick(selector string, keyboard bool) {
	tab.t.Helper()
	if keyboard {
		tab.Do(chromedp.Focus(chromedp.CSS(selector)), chromedp.KeyEvent(" "))
		return
	}
	tab.Do(chromedp.Click(chromedp.CSS(selector)))
}

// Keys presses keys one after the other, wherever the focus is: also in a frame.
func (tab *Tab) Keys(keys ...string) {
	tab.t.Helper()
	for _, k := range keys {
		tab.Do(chromedp.KeyEvent(k))
	}
}

// Requests gives the URLs that the page asked for since the last call, its own first.
func (tab *Tab) Requests() []string {
	tab.mu.Lock()
	defer tab.mu.Unlock()
	urls := tab.requests
	tab.requests = nil
	return urls
}

// Look checks what holds for every page: nothing sticks out at the side, what can be pressed is large enough (WCAG 2.2, 2.5.8), every input has a label, there is one heading
// of the first level and a language, ids are unique, text has contrast (1.4.3), axe-core finds nothing, and the browser had nothing to complain of.
func (tab *Tab) Look(name string) {
	tab.t.Helper()
	tab.report(name, Eval[[]string](tab, audit))
	tab.report(name, tab.axe(wcag+practice))
	tab.mu.Lock()
	messages := tab.messages
	tab.messages = nil
	tab.mu.Unlock() // the listener takes it while a picture is made
	for _, m := range messages {
		if !strings.Contains(m, "422") { // a form with problems
			tab.t.Errorf("%s, %s: the browser says: %s", name, tab.Name, m)
		}
	}
	tab.Keep(name)
}

func (tab *Tab) report(name string, found []string) {
	tab.t.Helper()
	for _, p := range found {
		tab.t.Errorf("%s, %s: %s", name, tab.Name, p)
	}
}

// axe gives what axe-core finds by the rules of some tags. The inspector puts it into the page, so that no policy of the page bars it; it waits for promises, which a browser without scripts does not
// keep: they are turned on meanwhile, and nothing of the page's own runs any more.
func (tab *Tab) axe(tags string) []string {
	tab.t.Helper()
	scripts := func(off bool) {
		tab.Do(call(emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: off}))
	}
	if tab.NoScripts {
		scripts(false)
		defer scripts(true)
	}
	Eval[bool](tab, axeSource(tab.t)+"\n;true")
	found, err := chromedp.Run(tab.ctx, chromedp.Evaluate[[]string](fmt.Sprintf(judge, tags), chromedp.EvalAwaitPromise))
	if err != nil {
		tab.t.Fatalf("%s: run axe-core: %v", tab.Name, err)
	}
	return found
}

// Keep puts a picture of the page into the directory that ONDA_TEST_SCREENSHOTS names, if it does, to be looked at.
func (tab *Tab) Keep(name string) {
	tab.t.Helper()
	dir := os.Getenv("ONDA_TEST_SCREENSHOTS")
	if dir == "" {
		return
	}
	png, err := chromedp.Run(tab.ctx, chromedp.FullScreenshot(100))
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, strings.NewReplacer(" ", "-", ",", "").Replace(name+" "+tab.Name)+".png"), png, 0o600)
	}
	if err != nil {
		tab.t.Fatalf("%s: keep a picture: %v", tab.Name, err)
	}
}

const audit = `(() => {
  const bad = [], root = document.documentElement;
  if (root.scrollWidth > root.clientWidth) bad.push("it is " + root.scrollWidth + " wide in a window of " + root.clientWidth);
  if (document.querySelectorAll("h1").length !== 1) bad.push("it has " + document.querySelectorAll("h1").length + " headings of the first level");
  if (!root.lang) bad.push("it says no language");
  if (!document.title) bad.push("it has no title");
  const seen = new Set();
  for (const e of document.querySelectorAll("[id]")) { if (seen.has(e.id)) bad.push("two have the id " + e.id); seen.add(e.id); }
  const visible = e => e.getClientRects().length > 0 && getComputedStyle(e).visibility === "visible" && !e.closest("[aria-hidden=true]");
  for (const e of document.querySelectorAll("input:not([type=hidden]), select, textarea")) {
    if (visible(e) && (!e.labels || e.labels.length === 0)) bad.push("the input " + e.name + " has no label");
    for (const id of (e.getAttribute("aria-describedby") || "").split(" ")) if (id && !document.getElementById(id)) bad.push("there is no " + id + " that describes " + e.name);
  }
  for (const e of document.querySelectorAll("button, a.button, input[type=checkbox], input[type=radio], select")) {
    const r = e.getBoundingClientRect();
    if (visible(e) && (r.width < 24 || r.height < 24)) bad.push(e.tagName + " " + (e.name || e.textContent) + " is " + r.width + " by " + r.height);
  }
  const rgb = s => { const m = s.match(/[\d.]+/g); return m ? m.map(Number) : [0, 0, 0, 0]; };
  const lum = c => { const f = c.slice(0, 3).map(v => { v /= 255; return v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4; }); return .2126 * f[0] + .7152 * f[1] + .0722 * f[2]; };
  const ground = e => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor); if (c.length < 4 || c[3] === 1) return c; } return [255, 255, 255]; };
  for (const e of document.querySelectorAll("body *")) {
    if (!visible(e) || ![...e.childNodes].some(n => n.nodeType === 3 && n.data.trim())) continue;
    const a = lum(rgb(getComputedStyle(e).color)), b = lum(ground(e)), ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (ratio < 4.5) bad.push("contrast " + ratio.toFixed(2) + " of " + JSON.stringify(e.textContent.trim().slice(0, 30)));
  }
  return bad;
})()`
