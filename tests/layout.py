"""Where the parts of a lab stand in the page, and what of them is cut off or covered, for the tests."""

LOOK = r"""() => {
    const lab = document.querySelector('.p4-lab'), panel = lab.closest('.jp-WindowedPanel-outer');
    const seen = (node) => node.checkVisibility({ visibilityProperty: true, opacityProperty: true });
    const find = (selector) => [...lab.querySelectorAll(selector)].filter(seen), cut = [], covered = [];
    const rect = (node) => (({ left, top, right, bottom }) => [left, top, right, bottom])(node.getBoundingClientRect());
    const meet = (a, b, slack) => (
        a[0] < b[2] - slack && b[0] < a[2] - slack && a[1] < b[3] - slack && b[1] < a[3] - slack);
    const named = (node) => node.closest('[data-name]')?.dataset.name ?? '';
    const told = (node) => {
        const kind = node.nodeType === Node.TEXT_NODE ? 'text' : node.className || node.tagName;
        const words = (node.value ?? node.textContent ?? '').slice(0, 40);
        return `${kind} ${named(node.parentElement ?? node)} "${words}"`;
    };

    // Texts and controls, but those in pictures and curves, which are looked at as a whole.
    const pieces = [], walker = document.createTreeWalker(lab, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const node = walker.currentNode, box = node.parentElement, range = document.createRange();
        if (!node.data.trim() || !seen(box) || box.closest('svg, select, style, .p4-stage, .p4-note')) continue;
        range.selectNodeContents(node);
        for (const line of range.getClientRects()) {
            pieces.push({ node, box, at: [line.left, line.top, line.right, line.bottom] });
        }
    }
    for (const node of find(':is(button, input, select, canvas, .p4-badge, .p4-stage):not(.p4-stage *, .modebar *)')) {
        pieces.push({ node, box: node.parentElement, at: rect(node) });
    }

    // None is cut off: only what explains more may end in an ellipsis, and a panel may be scrolled up and down.
    const may = '.p4-subtitle, figcaption span, .p4-message';
    for (const piece of pieces) {
        const { node, box, at } = piece;
        if (at[2] - at[0] < 1) cut.push(`${told(node)}: no width`);
        for (let parent = box; parent !== panel; parent = parent.parentElement) {
            const { overflowX, overflowY } = getComputedStyle(parent), edge = rect(parent);
            if (overflowX === 'visible' && overflowY === 'visible') continue;
            const across = at[0] < edge[0] - 1.5 || at[2] > edge[2] + 1.5;
            const along = overflowY !== 'auto' && (at[1] < edge[1] - 1.5 || at[3] > edge[3] + 1.5);
            if ((across || along) && !box.closest(may)) cut.push(`${told(node)}: cut off by ${parent.className}`);
            piece.at = at.map((value, k) => (k < 2 ? Math.max : Math.min)(value, edge[k]));
            if (across || along) break;
        }
    }
    for (const node of find('input.p4-text, input.p4-number')) {
        if (named(node) !== 'config' && node.scrollWidth > node.clientWidth + 1) cut.push(`${told(node)}: too long`);
    }
    for (const node of find('select')) {
        const [chosen] = node.selectedOptions, twin = node.cloneNode(false);
        if (!chosen) continue;
        twin.append(chosen.cloneNode(true));
        twin.style = 'position: absolute; visibility: hidden; width: auto; min-width: 0; max-width: none; flex: none';
        node.parentElement.append(twin);
        if (twin.offsetWidth > node.offsetWidth + 1) cut.push(`${named(node)}: ${chosen.label} is wider than its menu`);
        twin.remove();
    }
    const boxes = `.p4-panel, .p4-item, .p4-group, .p4-grid, .p4-plot, .p4-picture, .p4-pictures, .p4-show, .p4-below,
        .p4-tab-strip, .p4-layout`;
    for (const node of find(boxes)) {
        const { scrollWidth, clientWidth, className } = node;
        if (scrollWidth > clientWidth + 1) cut.push(`${className} ${named(node)}: ${scrollWidth} in ${clientWidth} px`);
    }

    // The texts of the curves stand beside one another, and the legend above.
    for (const plot of find('.p4-plot')) {
        const texts = [...plot.querySelectorAll('.legendtext, .annotation-text, .xtitle, .ytitle')];
        const inside = (a, b) => a[0] > b[0] - 2 && a[1] > b[1] - 2 && a[2] < b[2] + 2 && a[3] < b[3] + 2;
        for (const text of plot.querySelectorAll('.main-svg text')) {
            const at = rect(text);
            if (at[2] > at[0] && !inside(at, rect(plot))) cut.push(`curves: "${text.textContent}" is cut off`);
        }
        texts.forEach((one, k) => texts.slice(k + 1).forEach((other) => {
            if (meet(rect(one), rect(other), 2)) covered.push(`curves: "${one.textContent}", "${other.textContent}"`);
        }));
        const areas = [...plot.querySelectorAll('.nsewdrag')].map(rect);
        for (const text of plot.querySelectorAll('.legendtext')) {
            if (areas.some((area) => meet(rect(text), area, 2))) covered.push(`curves: legend "${text.textContent}"`);
        }
    }

    pieces.forEach(({ node, at }, k) => pieces.slice(k + 1).forEach(({ node: other, at: there }) => {
        if (node.contains(other) || other.contains(node)) return;
        if (meet(at, there, 1.5)) covered.push(`${told(node)} and ${told(other)}`);
    }));
    const rects = (nodes) => Object.fromEntries(
        nodes.map((node, k) => [`${named(node) || node.className} ${k}`, rect(node)]));
    const areas = ['head', 'time', 'side', 'show', 'below'].map((name) => [name, lab.querySelector(`.p4-${name}`)]);
    const [side] = find('.p4-side');
    return {
        panel: rect(panel),
        lab: rect(lab),
        areas: Object.fromEntries(areas.filter(([, node]) => node).map(([name, node]) => [name, rect(node)])),
        parts: rects(find('.p4-head .p4-item, .p4-side .p4-item, .p4-pictures > *, .p4-curves')),
        scrolls: side.scrollHeight > side.clientHeight + 1,
        cut,
        covered,
    };
}"""
"""A JavaScript function that looks at the first lab of a page; rectangles are left, top, right, bottom in its window.

It returns the rectangles of the notebook's panel (``panel``), of the ``lab``, of its ``areas``, and of what is needed
at once (``parts``: items of the header, settings, pictures, curves); whether the settings are higher than their place
(``scrolls``); and in words what is ``cut`` off, and what is ``covered`` by something else.
"""
