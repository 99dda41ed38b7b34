(function () {
  "use strict";

  var root = document.documentElement;
  var data = JSON.parse(document.getElementById("data").textContent);
  var MAX_GRID_LINES = 64;
  var LOW_POWER = window.matchMedia("(pointer: coarse)").matches;

  function colour(name) {
    return getComputedStyle(root).getPropertyValue("--" + name).trim();
  }

  function layout(extra) {
    var axis = {
      gridcolor: colour("grid"), linecolor: colour("rule"), zeroline: false, automargin: true,
      tickfont: { color: colour("quiet") }, ticks: "", showline: false
    };
    var base = {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, size: 13, color: colour("quiet") },
      margin: { l: 56, r: 12, t: 36, b: 48 },
      hoverlabel: { bgcolor: colour("raised"), bordercolor: colour("rule"), font: { family: getComputedStyle(document.body).fontFamily, color: colour("ink"), size: 13 }, align: "left", namelength: -1 },
      legend: { orientation: "h", x: 0, y: 1, yanchor: "bottom", xanchor: "left" },
      // On a touch screen a drag must scroll the page, not zoom the chart.
      dragmode: LOW_POWER ? false : "zoom"
    };
    base.xaxis = Object.assign({}, axis, extra.xaxis, { showgrid: false });
    base.yaxis = Object.assign({}, axis, { fixedrange: true }, extra.yaxis);
    base.xaxis.title.font = base.yaxis.title.font = { size: 13, color: colour("quiet") };
    delete extra.xaxis;
    delete extra.yaxis;
    return Object.assign(base, extra);
  }

  var CONFIG = { displayModeBar: false, responsive: true, doubleClick: "reset", showTips: false };

  // Plotly reads a small HTML dialect in its texts; names of nodes come from the user's model.
  function escaped(text) {
    return String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  }

  function decibel(value) {
    if (value === null) { return "hidden by fusion"; }
    return typeof value === "number" ? value.toFixed(1).replace("-", "\u2212") + " dB" : value;
  }

  /* Quality, layer by layer */

  function drawLayers() {
    var chart = document.getElementById("layers-chart");
    if (!chart) { return; }
    var layers = data.layers;
    var finite = layers.real.concat(layers.simulated).filter(function (v) { return typeof v === "number"; });
    if (!finite.length) { finite = [0]; }
    var ceiling = Math.ceil((Math.max.apply(null, finite) + 3) / 10) * 10;
    var floor = Math.floor((Math.min.apply(null, finite) - 5) / 10) * 10;
    function height(value) { return value === "exact" ? ceiling : typeof value === "number" ? value : null; }
    function hover(index) {
      return "<b>" + escaped(layers.node[index]) + "</b><br>" + escaped(layers.op[index]) +
        "<br>engine " + decibel(layers.real[index]) + "<br>simulated " + decibel(layers.simulated[index]);
    }
    var index = layers.node.map(function (_, i) { return i + 1; });
    var texts = layers.node.map(function (_, i) { return hover(i); });
    var many = index.length > 150;
    function trace(name, values, paint, dash) {
      return {
        type: "scatter", mode: many ? "lines" : "lines+markers", name: name, x: index, y: values.map(height), text: texts,
        hovertemplate: "%{text}<extra></extra>", connectgaps: true,
        line: { color: paint, width: 2, dash: dash }, marker: { color: paint, size: 5 }
      };
    }
    var traces = [
      trace("simulated", layers.simulated, colour("simulated"), "dot"),
      trace("in the engine", layers.real, colour("real"), "solid")
    ];
    var marks = layers.worst === null ? [] : [{
      x: layers.worst + 1, y: height(layers.real[layers.worst] === null ? layers.simulated[layers.worst] : layers.real[layers.worst]),
      text: "worst", showarrow: true, arrowhead: 0, arrowcolor: colour("poor"), font: { color: colour("poor") }, ax: 0, ay: 28
    }];
    Plotly.react(chart, traces, layout({
      xaxis: { title: { text: "layer, in the order of the graph" }, range: [0.5, index.length + 0.5] },
      yaxis: { title: { text: "SQNR, dB" }, range: [floor, ceiling + 1] },
      hovermode: "closest", annotations: marks
    }), CONFIG);
  }

  /* Values and grids */

  var picker = document.getElementById("histogram-picker");
  var logarithmic = document.getElementById("histogram-log");

  function binEdges(item) {
    if (item.edges) { return item.edges; }
    return item.counts.concat([0]).map(function (_, i) { return item.start + i * item.width; });
  }

  function gridShapes(item, view) {
    var shapes = [];
    function band(x0, x1) {
      shapes.push({ type: "rect", xref: "x", yref: "paper", x0: x0, x1: x1, y0: 0, y1: 1, fillcolor: colour("clip"), line: { width: 0 }, layer: "below" });
    }
    function line(x, paint, width, dash) {
      shapes.push({ type: "line", xref: "x", yref: "paper", x0: x, x1: x, y0: 0, y1: 1, layer: "above", line: { color: paint, width: width, dash: dash } });
    }
    if (item.low === null || item.high === null) { return { shapes: shapes, visible: 0 }; }
    if (view[0] < item.low) { band(view[0], item.low); }
    if (view[1] > item.high) { band(item.high, view[1]); }
    var visible = 0;
    if (item.step > 0) {
      var first = Math.max(0, Math.ceil((view[0] - item.low) / item.step - 1e-6));
      var last = Math.floor((Math.min(view[1], item.high) - item.low) / item.step + 1e-6);
      visible = Math.max(0, last - first + 1);
      for (var k = first; visible <= MAX_GRID_LINES && k <= last; k += 1) { line(item.low + k * item.step, colour("step"), 1, "solid"); }
    }
    line(item.low, colour("poor"), 1.5, "dash");
    line(item.high, colour("poor"), 1.5, "dash");
    return { shapes: shapes, visible: visible };
  }

  function sayGrid(visible) {
    var text = visible === 0 ? "No step of the grid is in view."
      : visible > MAX_GRID_LINES ? visible + " steps of the grid are in view; zoom in to see them one by one."
        : "The thin lines are the " + visible + " steps of the grid in view.";
    document.getElementById("histogram-grid").textContent = text;
  }

  function drawHistogram() {
    var chart = document.getElementById("histogram-chart");
    if (!chart || !picker) { return; }
    var item = data.histograms[Number(picker.value)];
    var edges = binEdges(item);
    var centres = item.counts.map(function (_, i) { return (edges[i] + edges[i + 1]) / 2; });
    var widths = item.counts.map(function (_, i) { return edges[i + 1] - edges[i]; });
    var ends = [edges[0], edges[edges.length - 1]];
    if (item.low !== null && item.high !== null) { ends = [Math.min(ends[0], item.low), Math.max(ends[1], item.high)]; }
    var pad = (ends[1] - ends[0]) * 0.02 || 1;
    var full = [ends[0] - pad, ends[1] + pad];
    var grid = gridShapes(item, full);
    var total = item.total || 1;
    Plotly.react(chart, [{
      type: "bar", x: centres, y: item.counts, width: widths, marker: { color: colour("data"), line: { width: 0 } },
      customdata: item.counts.map(function (count, i) { return [edges[i], edges[i + 1], 100 * count / total]; }),
      hovertemplate: "%{customdata[0]:.4g} to %{customdata[1]:.4g}<br>%{y:,} values (%{customdata[2]:.3g} %)<extra></extra>"
    }], layout({
      xaxis: { range: full, title: { text: item.kind + " value" } },
      // From one half on, so that a bin with one value can be seen.
      yaxis: logarithmic.checked
        ? { type: "log", title: { text: "values (log)" }, dtick: 1, range: [Math.log10(0.5), Math.log10(Math.max.apply(null, item.counts.concat([1]))) + 0.15] }
        : { title: { text: "values" }, rangemode: "tozero" },
      bargap: 0, showlegend: false, shapes: grid.shapes, margin: { l: 64, r: 12, t: 12, b: 48 }
    }), CONFIG);
    sayGrid(grid.visible);
    ["tensor", "format", "range", "step", "below", "above"].forEach(function (key) {
      document.getElementById("histogram-" + key).textContent = item.texts[key];
    });
    document.getElementById("histogram-previous").disabled = picker.selectedIndex === 0;
    document.getElementById("histogram-next").disabled = picker.selectedIndex === picker.options.length - 1;
    chart.dataset.full = JSON.stringify(full);
  }

  function watchZoom() {
    var chart = document.getElementById("histogram-chart");
    if (!chart || !picker) { return; }
    var drawing = false;
    chart.on("plotly_relayout", function (change) {
      var touched = Object.keys(change).some(function (key) { return key.indexOf("xaxis") === 0; });
      if (drawing || !touched) { return; }
      drawing = true;
      var view = chart.layout.xaxis.range.map(Number);
      var grid = gridShapes(data.histograms[Number(picker.value)], view);
      sayGrid(grid.visible);
      Plotly.relayout(chart, { shapes: grid.shapes }).then(function () { drawing = false; });
    });
    function move(by) {
      picker.selectedIndex += by;
      drawHistogram();
    }
    picker.addEventListener("change", drawHistogram);
    logarithmic.addEventListener("change", drawHistogram);
    document.getElementById("histogram-previous").addEventListener("click", function () { move(-1); });
    document.getElementById("histogram-next").addEventListener("click", function () { move(1); });
  }

  /* Tables: filter by typing, sort by a click on a heading */

  function prepareTable(table) {
    var body = table.tBodies[0];
    var rows = Array.prototype.slice.call(body.rows);
    var search = document.getElementById(table.id + "-search");
    var execution = document.getElementById(table.id + "-execution");
    var count = document.getElementById(table.id + "-count");
    var texts = rows.map(function (row) { return row.textContent.toLowerCase(); });

    function filter() {
      var words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      var shown = 0;
      rows.forEach(function (row, i) {
        var fits = words.every(function (word) { return texts[i].indexOf(word) >= 0; }) &&
          (!execution.value || row.dataset.execution === execution.value);
        row.hidden = !fits;
        shown += fits;
      });
      count.textContent = shown === rows.length ? rows.length + " in all" : shown + " of " + rows.length;
    }

    function key(row, column) {
      var cell = row.cells[column];
      var number = parseFloat(cell.dataset.value);
      return "value" in cell.dataset ? (isNaN(number) ? null : number) : cell.textContent.toLowerCase();
    }

    function sort(heading) {
      var ascending = heading.getAttribute("aria-sort") !== "ascending";
      Array.prototype.forEach.call(table.tHead.rows[0].cells, function (cell) { cell.removeAttribute("aria-sort"); });
      heading.setAttribute("aria-sort", ascending ? "ascending" : "descending");
      rows.map(function (row, i) { return { row: row, key: key(row, heading.cellIndex), order: i }; })
        .sort(function (a, b) {
          // Rows without a value go last either way.
          if (a.key === null || b.key === null) { return (a.key === null) - (b.key === null) || a.order - b.order; }
          var order = a.key < b.key ? -1 : a.key > b.key ? 1 : 0;
          return (ascending ? order : -order) || a.order - b.order;
        })
        .forEach(function (item) { body.appendChild(item.row); });
    }

    search.addEventListener("input", filter);
    execution.addEventListener("change", filter);
    table.tHead.addEventListener("click", function (event) {
      var button = event.target.closest("button");
      if (button) { sort(button.parentNode); }
    });
    filter();
  }

  function draw() {
    drawLayers();
    drawHistogram();
  }

  draw();
  watchZoom();
  Array.prototype.forEach.call(document.querySelectorAll("table.sortable"), prepareTable);
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  window.addEventListener("beforeprint", function () { root.classList.add("paper"); draw(); });
  window.addEventListener("afterprint", function () { root.classList.remove("paper"); draw(); });
  root.dataset.ready = "true";
})();
