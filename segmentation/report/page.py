"""The frame of an HTML report: one file with its style and a few lines of script, and leave to load nothing else."""

from html import escape

STYLE = """
:root{color-scheme:light dark;--back:#fff;--text:#1c1e21;--soft:#5c636d;--edge:#d9dde2;--pane:#f5f6f8;--mark:42,120,214}
@media (prefers-color-scheme:dark){
:root{--back:#15171a;--text:#e6e8eb;--soft:#a0a7b1;--edge:#363b42;--pane:#1e2126;--mark:86,156,240}}
@media print{:root{color-scheme:light;--back:#fff;--text:#000;--soft:#444;--edge:#bbb;--pane:#fff;--mark:42,120,214}}
*{box-sizing:border-box}
body{margin:0 auto;padding:1.5rem clamp(.8rem,3vw,2.5rem) 4rem;max-width:1280px;background:var(--back);
color:var(--text);font:1rem/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
h1{font-size:1.6rem;line-height:1.25;margin:0 0 .2rem;overflow-wrap:anywhere}
h2{font-size:1.2rem;margin:2.6rem 0 .7rem;padding-top:.5rem;border-top:1px solid var(--edge)}
h3{font-size:.95rem;margin:0 0 .4rem;overflow-wrap:anywhere}
p{margin:.3rem 0 .8rem;max-width:75ch}
.soft,figcaption{color:var(--soft)}
nav{margin:.8rem 0;display:flex;flex-wrap:wrap;gap:.3rem 1.1rem}
a{color:rgb(var(--mark))}
a:focus-visible,button:focus-visible,input:focus-visible,summary:focus-visible,.wide:focus-visible{
outline:3px solid rgb(var(--mark));outline-offset:2px}
.wide{overflow-x:auto}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{padding:.32rem .75rem;text-align:left;border-bottom:1px solid var(--edge);vertical-align:middle}
thead th{color:var(--soft);font-weight:500;font-size:.86rem;vertical-align:bottom}
tbody th{font-weight:500;white-space:nowrap}
td.soft{font-size:.9em;min-width:18rem}
td.number{text-align:right;white-space:nowrap}
tr.first td.number{font-size:1.35rem;font-weight:650}
.best{font-weight:700}
.bar{display:flex;align-items:center;gap:.5rem;min-width:7.5rem}
.bar>span:first-child{width:3.8em;text-align:right}
.bar i{flex:1;height:.7rem;border-radius:2px;background:var(--edge);overflow:hidden}
.bar b{display:block;height:100%;background:rgb(var(--mark))}
.swatch{display:inline-block;width:.9em;height:.9em;border-radius:2px;margin-right:.5em;vertical-align:-.08em;
border:1px solid var(--soft)}
.legend{display:flex;flex-wrap:wrap;gap:.15rem 1.1rem;margin:.5rem 0 1rem;padding:0;list-style:none;font-size:.9rem}
.curves{display:grid;grid-template-columns:repeat(4,1fr);gap:.6rem 1.4rem}
.curves svg{width:100%;height:auto}
.example{margin:0 0 1.6rem;break-inside:avoid}
.row{display:grid;gap:.5rem;grid-template-columns:repeat(4,1fr)}
.row.many{grid-template-columns:none;grid-template-rows:auto auto;grid-auto-flow:column;grid-auto-columns:1fr}
figure{margin:0;min-width:0}
figcaption{font-size:.82rem;line-height:1.35;margin-top:.15rem}
.zoom{display:block;width:100%;padding:0;border:0;background:none;cursor:zoom-in}
.zoom img{display:block;width:100%;height:auto;border-radius:3px}
.labels{image-rendering:pixelated}
.matrix th,.matrix td{padding:.25rem .4rem;border:1px solid var(--back);text-align:center;font-size:.8rem}
.matrix thead th{writing-mode:vertical-rl;transform:rotate(180deg);text-align:left;vertical-align:top}
.matrix tbody th{text-align:right;white-space:nowrap}
.matrix td{min-width:2.9em}
.facts th{white-space:nowrap;vertical-align:top}
.facts td{overflow-wrap:anywhere;min-width:14rem}
code,pre{font:.85rem/1.45 ui-monospace,"DejaVu Sans Mono",monospace;overflow-wrap:anywhere}
pre{white-space:pre-wrap;background:var(--pane);padding:.8rem;border-radius:4px}
dialog{border:0;padding:.8rem;width:100vw;height:100vh;max-width:none;max-height:none;background:var(--back);
color:var(--text)}
dialog[open]{display:flex;flex-direction:column;gap:.5rem}
dialog::backdrop{background:#000b}
.tools{display:flex;flex-wrap:wrap;gap:.4rem .8rem;align-items:center;font-size:.9rem}
.tools strong{flex:1;overflow-wrap:anywhere}
.tools button{font:inherit;padding:.25rem .7rem;border:1px solid var(--edge);border-radius:4px;background:var(--pane);
color:var(--text);cursor:pointer}
.tools button[aria-pressed=true]{background:rgb(var(--mark));border-color:transparent;color:#fff}
.tools label{display:flex;gap:.4rem;align-items:center}
.tools input[type=range]{width:min(34vw,320px)}
.stage{flex:1;min-height:0;position:relative}
.stage img{position:absolute;inset:0;width:100%;height:100%;object-fit:contain}
kbd{font:inherit;color:var(--soft);border:1px solid var(--edge);border-radius:3px;padding:0 .3em}
@media screen and (max-width:1050px){.curves{grid-template-columns:1fr 1fr}}
@media screen and (max-width:760px){.curves{grid-template-columns:1fr}
th,td{padding:.3rem .4rem}td.soft{font-size:.8em}.tools strong{flex-basis:100%}
.row,.row.many{grid-template-columns:1fr 1fr;grid-template-rows:none;grid-auto-flow:row}
kbd{display:none}.bar{min-width:4rem;flex-direction:column;align-items:stretch;gap:.1rem}
.bar>span:first-child{text-align:left}.bar i{flex:none;height:.45rem}.facts td{min-width:9rem}}
@media print{nav,dialog,.hint{display:none}html{font-size:10.5px}body{padding:0;max-width:none}
*{print-color-adjust:exact;-webkit-print-color-adjust:exact}h2,h3,.legend{break-after:avoid}tr,.matrix{break-inside:avoid}
.wide{overflow:visible}.bar{min-width:7rem}.curves svg{break-inside:avoid}}
"""

VIEWER = """<dialog id="viewer" aria-label="Enlarged pictures">
<div class="tools"><strong id="caption" aria-live="polite"></strong>
<button id="previous">Previous <kbd>P</kbd></button><button id="next">Next <kbd>N</kbd></button>
<button id="close">Close <kbd>Esc</kbd></button></div>
<div class="stage"><img id="base" alt=""><img id="truth" class="labels" alt="">
<img id="prediction" class="labels" alt=""></div>
<div class="tools"><button data-mode="image">Image <kbd>1</kbd></button>
<button data-mode="labels">Truth and prediction <kbd>2</kbd></button>
<button data-mode="difference">Difference <kbd>3</kbd></button>
<label>truth <input type="range" id="wipe" min="0" max="100" aria-label="from truth to prediction"> prediction</label>
<button id="flip">Flip <kbd>F</kbd></button>
<label><input type="checkbox" id="over"> over the image <kbd>O</kbd></label></div>
<ul class="legend" id="colours"></ul></dialog>"""

SCRIPT = """
const id = name => document.getElementById(name), viewer = id("viewer");
const views = [...document.querySelectorAll("[data-kind=prediction]")].map(button => {
  const figures = kind => button.closest("article").querySelector(
    `[data-kind=${kind}]` + (kind == "difference" ? `[data-model="${button.dataset.model}"]` : "")).firstElementChild;
  return {button, article: button.closest("article"), model: button.dataset.model, image: figures("image"),
    truth: figures("truth"), prediction: button.firstElementChild, difference: figures("difference")};
});
let view = 0, mode = "labels";
function draw() {
  const now = views[view], base = mode == "difference" ? now.difference : now.image, labels = mode == "labels";
  const part = id("wipe").value;
  for (const [name, from] of [["base", base], ["truth", now.truth], ["prediction", now.prediction]]) {
    id(name).src = from.src;
    id(name).alt = from.alt;
    id(name).hidden = name != "base" && !labels;
    id(name).style.opacity = name != "base" && id("over").checked ? .55 : 1;
  }
  const stage = id("prediction").getBoundingClientRect(), {naturalWidth: w, naturalHeight: h} = now.prediction;
  const shown = Math.min(stage.width, stage.height * w / h), edge = (stage.width - shown) / 2;
  const cut = edge + shown * part / 100;
  id("prediction").style.clipPath = `inset(0 ${stage.width - cut}px 0 0)`;
  id("truth").style.clipPath = `inset(0 0 0 ${cut}px)`;
  id("caption").textContent = now.button.dataset.title;
  for (const button of viewer.querySelectorAll("[data-mode]"))
    button.setAttribute("aria-pressed", button.dataset.mode == mode);
}
function go(step) { view = (view + step + views.length) % views.length; draw(); }
function flip() { id("wipe").value = id("wipe").value > 50 ? 0 : 100; mode = "labels"; draw(); }
function show(next) { mode = next; draw(); }
for (const button of document.querySelectorAll(".zoom")) button.onclick = () => {
  const kind = button.dataset.kind, model = button.dataset.model || views[0].model;
  view = views.findIndex(v => v.article == button.closest("article") && v.model == model);
  mode = kind == "truth" || kind == "prediction" ? "labels" : kind;
  id("wipe").value = kind == "truth" ? 0 : 100;
  viewer.showModal();
  draw();
};
if (views.length) id("colours").innerHTML = document.querySelector(".classes").innerHTML;
for (const button of viewer.querySelectorAll("[data-mode]")) button.onclick = () => show(button.dataset.mode);
id("wipe").oninput = () => show("labels");
id("over").onchange = () => show("labels");
id("flip").onclick = flip;
id("next").onclick = () => go(1);
id("previous").onclick = () => go(-1);
id("close").onclick = () => viewer.close();
addEventListener("resize", () => viewer.open && draw());
viewer.onkeydown = event => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const keys = {n: () => go(1), p: () => go(-1), f: flip, 1: () => show("image"), 2: () => show("labels"),
    3: () => show("difference"), o: () => { id("over").checked = !id("over").checked; show("labels"); }};
  const action = keys[event.key.toLowerCase()];
  if (action) { event.preventDefault(); action(); }
};
"""


def page(title: str, style: str, body: str) -> str:
    """A whole HTML file. style: added to the page's own; body: HTML, in which every text is escaped already."""
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width,initial-scale=1">\n'
        f"<style>{STYLE}</style>{style}</head>\n<body>\n{body}\n{VIEWER}\n<script>{SCRIPT}</script></body></html>\n"
    )
