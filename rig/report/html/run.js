"use strict";
// What the page shows without this, it also shows with it: here are hovering, keys and zooming.
{
  const PAGE = 4096;
  const narrow = window.matchMedia("(max-width: 40rem)");

  function make(tag, properties = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(properties)) {
      if (name in element) element[name] = value;
      else element.setAttribute(name, value);
    }
    element.append(...children);
    return element;
  }

  const hex = (number, digits = 0) => number.toString(16).padStart(digits, "0");

  // ---------------------------------------------------------------- the page directory

  function pictureOf(root) {
    const grid = root.querySelector(".grid");
    const panel = root.querySelector(".entry");
    const cells = [...grid.querySelectorAll("i")];
    const lines = [...grid.querySelectorAll(".line")];
    const columns = lines[0].querySelectorAll("i").length;
    const names = [...document.querySelectorAll("#entries thead th")].map((cell) => cell.textContent);
    const shift = BigInt(root.dataset.shift);
    const signFrom = Number(root.dataset.sign);
    const first = (kind) => cells.findIndex((cell) => cell.className === kind);
    let current = [first("changed"), cells.findIndex((cell) => cell.textContent), 0].find((index) => index >= 0);

    function range(index) {
      let start = BigInt(index) << shift;
      if (index >= signFrom) start |= BigInt.asUintN(64, -1n << (shift + 9n));
      return `0x${hex(start)}–0x${hex(start + (1n << shift) - 1n)}`;
    }

    // Name and value of all that is known of an entry: what its row in the table says.
    function facts(index) {
      const row = document.getElementById(`entry-${index}`);
      if (!row) return [["Virtual addresses", range(index)], ["Before", "0, not present"], ["After", "unchanged"]];
      return [...row.cells].map((cell, i) => [names[i], cell.innerText || cell.textContent]).slice(1).filter(([, value]) => value);
    }

    function show(index) {
      const known = make("dl");
      for (const [name, value] of facts(index)) {
        known.append(make("dt", {}, name), make("dd", { className: "code" }, value));
      }
      const keys = "Arrows, Home and End move; n and p go to the next and the previous changed entry.";
      panel.replaceChildren(make("h3", {}, `${root.dataset.entry} [${index}]`), known, make("p", {}, keys));
      grid.querySelector(".at")?.classList.remove("at");
      cells[index].classList.add("at");
    }

    function focus(index) {
      cells[current].tabIndex = -1;
      current = index;
      cells[current].tabIndex = 0;
      cells[current].focus();
    }

    function nextChanged(step) {
      for (let i = current + step; i >= 0 && i < cells.length; i += step) {
        if (cells[i].classList.contains("changed")) return i;
      }
      return current;
    }

    const moves = {
      ArrowLeft: () => current - 1,
      ArrowRight: () => current + 1,
      ArrowUp: () => current - columns,
      ArrowDown: () => current + columns,
      Home: () => current - (current % columns),
      End: () => current - (current % columns) + columns - 1,
      n: () => nextChanged(1),
      p: () => nextChanged(-1),
    };

    grid.setAttribute("role", "grid");
    for (const line of lines) {
      line.setAttribute("role", "row");
      line.querySelector("b").setAttribute("role", "rowheader");
    }
    cells.forEach((cell, index) => {
      cell.setAttribute("role", "gridcell");
      cell.tabIndex = index === current ? 0 : -1;
      const words = facts(index).map(([name, value]) => `${name} ${value}`).join(", ");
      cell.setAttribute("aria-label", `${root.dataset.entry} ${index}, ${cell.className}: ${words}`);
    });
    grid.addEventListener("pointerover", (event) => {
      if (event.target.dataset.i) show(Number(event.target.dataset.i));
    });
    grid.addEventListener("pointerleave", () => show(current));
    grid.addEventListener("click", (event) => {
      if (event.target.dataset.i) focus(Number(event.target.dataset.i));
    });
    grid.addEventListener("focusin", (event) => {
      if (event.target.dataset.i) show(Number(event.target.dataset.i));
    });
    grid.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || !(event.key in moves)) return;
      const next = moves[event.key]();
      if (next >= 0 && next < cells.length) focus(next);
      event.preventDefault();
    });
    panel.hidden = false;
    show(current);
  }

  // ---------------------------------------------------------------- the bytes of a page

  function versions(page) {
    const before = Uint8Array.from(atob(page.dataset.before), (letter) => letter.charCodeAt(0));
    const after = before.slice();
    for (const part of page.dataset.patch.split(" ")) {
      const [at, bytes] = part.split(":");
      for (let i = 0; i < bytes.length; i += 2) {
        after[parseInt(at, 16) + i / 2] = parseInt(bytes.slice(i, i + 2), 16);
      }
    }
    return [before, after];
  }

  // One side of a line: runs of bytes that differ are marked by an element, and each byte by its sign.
  function side(own, other, start, size, tag, sign) {
    const code = make("code");
    for (let at = start; at < start + size; ) {
      const differs = own[at] !== other[at];
      let text = "";
      for (; at < start + size && (own[at] !== other[at]) === differs; at += 1) {
        text += (differs ? sign : " ") + hex(own[at], 2);
      }
      code.append(differs ? make(tag, {}, text) : text);
    }
    return code;
  }

  const text = (bytes, start, size) =>
    [...bytes.slice(start, start + size)].map((byte) => (byte > 31 && byte < 127 ? String.fromCharCode(byte) : ".")).join("");

  function allBytes(page) {
    const [before, after] = versions(page);
    const start = Number(page.dataset.page);
    const size = narrow.matches ? 8 : 16;
    const lines = make("div", { className: "hex" });
    for (let at = 0; at < PAGE; at += size) {
      const old = side(before, after, at, size, "del", "−");
      const line = make("div", {}, make("span", {}, hex(start + at, 8)), old, side(after, before, at, size, "ins", "+"));
      if (size === 16) line.append(make("span", {}, text(after, at, size)));
      if (!old.querySelector("del")) line.className = "same";
      lines.append(line);
    }
    return lines;
  }

  function scrollToChange(box) {
    const first = box.querySelector(".hex > div:not(.same)");
    if (first) box.scrollTop = Math.max(0, first.offsetTop - box.offsetTop - 40);
  }

  function offerAllBytes(page) {
    const box = page.querySelector(".scroll");
    const few = box.firstElementChild;
    const button = make("button", { type: "button" }, "All 4096 bytes");
    button.addEventListener("click", () => {
      const all = !box.contains(few);
      box.replaceChildren(all ? few : allBytes(page));
      box.classList.toggle("tall", !all);
      button.textContent = all ? "All 4096 bytes" : "Only lines that differ";
      scrollToChange(box);
    });
    page.prepend(button);
  }

  // ---------------------------------------------------------------- the map of physical memory

  // All of the map, one range behind the other. Offsets count from the first byte of the first range on, over holes;
  // addresses are physical.
  function spaceOf(text) {
    const ranges = text.split(" ").map((range) => range.split("-").map((part) => parseInt(part, 16)));
    const total = ranges.reduce((sum, [start, end]) => sum + end - start, 0);

    function toOffset(address) {
      let passed = 0;
      for (const [start, end] of ranges) {
        if (address < end) return passed + Math.max(0, address - start);
        passed += end - start;
      }
      return passed;
    }

    function toAddress(offset) {
      let passed = 0;
      for (const [start, end] of ranges) {
        if (offset < passed + end - start) return start + offset - passed;
        passed += end - start;
      }
      return ranges[ranges.length - 1][1];
    }

    return { total, toOffset, toAddress };
  }

  function size(bytes) {
    for (const [unit, each] of [["GiB", 2 ** 30], ["MiB", 2 ** 20], ["KiB", 2 ** 10]]) {
      if (bytes >= each) return `${Number((bytes / each).toFixed(1))} ${unit}`;
    }
    return `${bytes} B`;
  }

  // Buttons for the acts, by their keys. Returns where the map says what it shows.
  function fillTools(tools, acts) {
    for (const [text, label, key] of [
      ["−", "Zoom out", "-"], ["+", "Zoom in", "+"], ["All", "All of memory", "0"], ["◀", "Left", "ArrowLeft"],
      ["▶", "Right", "ArrowRight"], ["‹ Change", "Previous changed page", "p"], ["Change ›", "Next changed page", "n"],
    ]) {
      const button = make("button", { type: "button", title: label, "aria-label": label, "data-key": key }, text);
      button.addEventListener("click", acts[key]);
      tools.append(button);
    }
    const output = make("output", { "aria-live": "polite" });
    const help = "Also by keys, with the map in focus: + − 0, arrows, n and p; the wheel zooms then (elsewhere with Ctrl). " +
      "A single page is shown with its bytes, and only the lanes that it is in.";
    tools.append(output, make("p", {}, help));
    tools.hidden = false;
    return output;
  }

  function mapOf(root) {
    const lanes = root.querySelector(".lanes");
    const tools = root.querySelector(".tools");
    const viewer = root.querySelector(".viewer");
    const axis = root.querySelector(".axis .strip");
    const { total, toOffset, toAddress } = spaceOf(root.dataset.ranges);
    const marks = [...root.querySelectorAll(".strip [data-a]")].map((element) => ({
      element, start: toOffset(Number(element.dataset.a)), end: toOffset(Number(element.dataset.b)),
    }));
    const links = [...root.querySelectorAll(".strip a")];
    const changed = [...new Set(links.map((link) => Number(link.dataset.a)))].sort((a, b) => a - b);
    let low = 0;
    let high = total;

    function drawAxis() {
      const span = high - low;
      const step = 2 ** Math.ceil(Math.log2(span / (narrow.matches ? 3 : 6)));
      const found = [];
      for (let at = Math.ceil(toAddress(low) / step) * step; toOffset(at) < high && at <= toAddress(high); at += step) {
        const offset = toOffset(at);
        if (toAddress(offset) !== at) {  // in a hole: go on behind it
          at = Math.ceil(toAddress(offset) / step) * step - step;
          continue;
        }
        const text = step < 2 ** 20 ? `0x${hex(at)}` : at ? size(at) : "0";
        const label = make("span", {}, text);
        label.style.left = `${(100 * (offset - low)) / span}%`;
        found.push(label);
      }
      axis.replaceChildren(...found);
    }

    function draw() {
      const span = high - low;
      for (const { element, start, end } of marks) {
        const from = Math.max(start, low);
        const to = Math.min(end, high);
        element.hidden = from >= to;
        element.style.left = `${(100 * (from - low)) / span}%`;
        element.style.width = `${(100 * (to - from)) / span}%`;
      }
      for (const lane of root.querySelectorAll(".lane:not(.axis)")) {
        lane.hidden = span === PAGE && !lane.querySelector(".strip > :not([hidden])");
      }
      drawAxis();
      output.textContent = `0x${hex(toAddress(low))}–0x${hex(toAddress(high - 1))}, ${size(span)}`;
      if (span === PAGE) showBytes(toAddress(low));
      else viewer.hidden = true;
    }

    // The window gets `span` bytes around a place that keeps its share of the width; never less than a page.
    function zoom(span, at = (low + high) / 2) {
      const share = (at - low) / (high - low);
      span = Math.min(total, Math.max(PAGE, Math.round(span)));
      low = Math.min(total - span, Math.max(0, Math.round(at - share * span)));
      if (span === PAGE) low -= toAddress(low) % PAGE;
      high = low + span;
      draw();
    }

    function move(by) {
      const span = high - low;
      const step = Math.sign(by) * Math.max(PAGE, Math.round(Math.abs(by) * span));
      low = Math.min(total - span, Math.max(0, low + step));
      high = low + span;
      draw();
    }

    function goTo(address) {
      low = toOffset(address);
      high = low + PAGE;
      draw();
    }

    function goToChange(step) {
      const here = toAddress(low);
      const single = high - low === PAGE;
      const after = changed.filter((address) => (single ? address > here : address >= here));
      const before = changed.filter((address) => address < (single ? here : toAddress(high - 1)));
      const next = step > 0 ? after[0] : before[before.length - 1];
      if (next !== undefined) goTo(next);
    }

    function showBytes(address) {
      const pages = [...document.querySelectorAll(`.page[data-page="0x${hex(address)}"]`)];
      viewer.replaceChildren();
      if (!pages.length) viewer.append(make("p", {}, `Page 0x${hex(address)}: no change of it was kept.`));
      for (const page of pages) {
        const told = page.parentElement.querySelector("summary").textContent;
        const box = make("div", { className: "scroll tall", role: "region", "aria-label": `All bytes of ${told}` });
        box.tabIndex = 0;
        box.append(page.dataset.before ? allBytes(page) : page.querySelector(".hex").cloneNode(true));
        viewer.append(make("h3", {}, told), box);
      }
      viewer.hidden = false;
      viewer.querySelectorAll(".scroll").forEach(scrollToChange);
    }

    const acts = {
      "+": () => zoom((high - low) / 4),
      "-": () => zoom((high - low) * 4),
      0: () => zoom(total),
      ArrowLeft: () => move(-0.25),
      ArrowRight: () => move(0.25),
      n: () => goToChange(1),
      p: () => goToChange(-1),
    };
    acts["="] = acts["+"];

    const output = fillTools(tools, acts);
    lanes.tabIndex = 0;
    for (const link of links) link.tabIndex = -1;

    lanes.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || !(event.key in acts)) return;
      acts[event.key]();
      event.preventDefault();
    });
    lanes.addEventListener("wheel", (event) => {
      if (!event.ctrlKey && !lanes.contains(document.activeElement)) return;
      const box = axis.getBoundingClientRect();
      const share = Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
      zoom((high - low) * (event.deltaY > 0 ? 2 : 0.5), low + share * (high - low));
      event.preventDefault();
    }, { passive: false });
    lanes.addEventListener("click", (event) => {
      if (!event.target.dataset.a || event.target.tagName !== "A") return;
      goTo(Number(event.target.dataset.a));
      event.preventDefault();
    });
    draw();
  }

  document.querySelectorAll(".pgd[data-shift]").forEach(pictureOf);
  document.querySelectorAll(".page[data-before]").forEach(offerAllBytes);
  document.querySelectorAll(".map").forEach(mapOf);
  document.querySelectorAll("pre.last").forEach((listing) => (listing.scrollTop = listing.scrollHeight));
}
