'use strict';
// Maps of a report: drag to move, scroll, buttons or keys to zoom. The pointer shows class and coordinates.
for (const map of document.querySelectorAll('.map')) {
  const facts = JSON.parse(map.dataset.facts), image = map.querySelector('img'), scale = map.querySelector('.scale');
  const place = map.nextElementSibling, [a, b, c, d, e, f] = facts.transform, pointers = new Map();
  let zoom = 1, left = 0, top = 0, pixels = null;

  function draw() {
    image.style.transform = `translate(${left}px, ${top}px) scale(${zoom})`;
    map.dataset.zoom = zoom;
    if (!facts.metres) { scale.hidden = true; return; }
    const most = 140 * facts.metres / zoom, power = 10 ** Math.floor(Math.log10(most));
    const length = power * [5, 2, 1].find(n => n * power <= most);
    scale.style.width = `${length / facts.metres * zoom}px`;
    scale.textContent = length >= 1000 ? `${length / 1000} km` : `${length} m`;
  }
  function reset() {
    zoom = Math.min(map.clientWidth / facts.width, map.clientHeight / facts.height);
    left = (map.clientWidth - zoom * facts.width) / 2;
    top = (map.clientHeight - zoom * facts.height) / 2;
    draw();
  }
  function change(factor, x = map.clientWidth / 2, y = map.clientHeight / 2) {
    const next = Math.min(64, Math.max(0.02, zoom * factor));
    left = x - (x - left) * next / zoom;
    top = y - (y - top) * next / zoom;
    zoom = next;
    draw();
  }
  function move(x, y) { left += x; top += y; draw(); }
  function at(event) {
    const box = map.getBoundingClientRect();
    return [event.clientX - box.left - map.clientLeft, event.clientY - box.top - map.clientTop];
  }
  function show(event) {
    const [x, y] = at(event), column = (x - left) / zoom, row = (y - top) / zoom;
    if (column < 0 || row < 0 || column >= facts.width || row >= facts.height) return;
    if (!pixels) {
      const canvas = document.createElement('canvas');
      [canvas.width, canvas.height] = [facts.width, facts.height];
      pixels = canvas.getContext('2d', {willReadFrequently: true});
      pixels.drawImage(image, 0, 0);
    }
    const rgba = pixels.getImageData(column, row, 1, 1).data;
    const color = '#' + [...rgba].slice(0, 3).map(v => v.toString(16).padStart(2, '0')).join('');
    const name = rgba[3] ? facts.legend[color] ?? '' : 'no data';
    const ground = [c + a * column + b * row, f + d * column + e * row];
    place.textContent = `${name}${name && ', '}${ground.map(v => v.toFixed(facts.metres ? 0 : 5)).join(', ')} ${facts.crs}`;
  }
  map.addEventListener('wheel', event => {
    event.preventDefault();
    change(Math.exp(-event.deltaY / 400), ...at(event));
  }, {passive: false});
  map.addEventListener('pointerdown', event => {
    if (event.target.tagName === 'BUTTON') return;
    try { map.setPointerCapture(event.pointerId); } catch { /* a simulated pointer */ }
    pointers.set(event.pointerId, at(event));
  });
  map.addEventListener('pointermove', event => {
    show(event);
    const before = pointers.get(event.pointerId), now = at(event);
    if (!before) return;
    const other = [...pointers].find(([id]) => id !== event.pointerId);
    if (other) {
      const far = p => Math.hypot(p[0] - other[1][0], p[1] - other[1][1]);
      if (far(before)) change(far(now) / far(before), ...other[1]);
    } else move(now[0] - before[0], now[1] - before[1]);
    pointers.set(event.pointerId, now);
  });
  for (const kind of ['pointerup', 'pointercancel']) map.addEventListener(kind, event => pointers.delete(event.pointerId));
  const [more, less, all] = map.querySelectorAll('button');
  more.onclick = () => change(1.5);
  less.onclick = () => change(1 / 1.5);
  all.onclick = reset;
  map.addEventListener('keydown', event => {
    const steps = {ArrowLeft: [40, 0], ArrowRight: [-40, 0], ArrowUp: [0, 40], ArrowDown: [0, -40]};
    if (steps[event.key]) move(...steps[event.key]);
    else if (event.key === '+' || event.key === '=') change(1.5);
    else if (event.key === '-') change(1 / 1.5);
    else if (event.key === '0') reset();
    else return;
    event.preventDefault();
  });
  image.decode().then(reset, reset);
}
