"""The looks of the view. Every colour goes with JupyterLab's light and dark themes, and with neither of them."""

STYLE = """<style>
.nbsync{font:12px/1.5 var(--jp-code-font-family,ui-monospace,SFMono-Regular,Menlo,Consolas,monospace);
font-variant-numeric:tabular-nums;max-width:980px;color:var(--jp-content-font-color1,inherit)}
.nbsync.nbsync.nbsync table{border-collapse:collapse;table-layout:fixed;width:100%;margin:2px 0;font-size:12px}
.nbsync.nbsync.nbsync td,.nbsync.nbsync.nbsync th{border:0;padding:0 10px 0 0;line-height:18px;max-width:none;
text-align:left;font-weight:normal;background:none;white-space:nowrap;overflow:hidden;text-overflow:ellipsis;
vertical-align:top}
.nbsync.nbsync.nbsync tr{background:none}
.nbsync .r{width:70px}.nbsync .s{width:104px}.nbsync .d{width:56px}.nbsync .m{width:76px}.nbsync .m.gpu{width:200px}
.nbsync .q{opacity:.65}
.nbsync .b{display:flex;gap:8px;height:18px;align-items:center;white-space:nowrap;overflow:hidden}
.nbsync .n{flex:0 0 130px;overflow:hidden;text-overflow:ellipsis}
.nbsync .t{flex:0 0 200px;height:8px;border-radius:4px;background:rgba(128,128,128,.28);overflow:hidden;
position:relative}
.nbsync .t i{position:absolute;left:0;top:0;bottom:0;background:#3c82c8}
.nbsync .t i+i{opacity:.6}.nbsync .t i+i+i{opacity:.35}
.nbsync .t.u i{width:100%;background:repeating-linear-gradient(115deg,#3c82c8 0 8px,#6aa5df 8px 16px)}
.nbsync .done .t i{background:#3d9a50}.nbsync .stop .t i{background:#8a8a8a}
.nbsync .x{flex:1;min-width:0;overflow:hidden;text-overflow:ellipsis}
.nbsync .w{min-height:18px;white-space:nowrap;overflow:hidden;text-overflow:ellipsis}
.nbsync .running,.nbsync .starting{color:#3c82c8}.nbsync .done{color:inherit}
.nbsync .s.done,.nbsync b.done{color:#3d9a50}.nbsync .waiting,.nbsync .interrupted{color:#b8790b}
.nbsync .failed,.nbsync .dead{color:#d64541}.nbsync .released,.nbsync .idle{opacity:.65}
.nbsync .g{display:flex;flex-wrap:wrap;gap:2px;margin:4px 0}
.nbsync .g i{width:14px;height:14px;border-radius:2px;
background:linear-gradient(to top,currentColor calc(var(--p)*1%),rgba(128,128,128,.28) 0)}
.nbsync .g .done{color:#3d9a50}
.nbsync .g .waiting,.nbsync .g .failed,.nbsync .g .dead{background:currentColor}
</style>"""
