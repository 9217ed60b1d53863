// The 3D pane of a page. What it draws stands in the element #pane-data; pane/__init__.py wrote it there.
(() => {
  "use strict";
  const pane = document.getElementById("pane");
  const canvas = pane.querySelector("canvas");
  const switches = pane.querySelector(".switches"), caption = pane.querySelector(".caption");
  const { exhibits, glow } = JSON.parse(document.getElementById("pane-data").textContent);

  let renderer;
  try {
    renderer = new THREE.WebGLRenderer({ canvas, antialias: true, preserveDrawingBuffer: true });
  } catch {
    return; // no WebGL: the still pictures are what there is
  }
  renderer.setClearColor(0xffffff);
  renderer.setPixelRatio(Math.min(window.devicePixelRatio, 2));

  const camera = new THREE.PerspectiveCamera(40, 1, 0.01, 1000);
  camera.up.set(0, 0, 1);
  const controls = new THREE.OrbitControls(camera, canvas);
  controls.maxPolarAngle = Math.PI * 0.495; // not below the floor
  const material = new THREE.ShaderMaterial({
    uniforms: { scale: { value: 1 }, hidden: { value: 0 }, radius: { value: 0.01 } },
    vertexShader: `
      attribute vec3 color;
      attribute float walls, light;
      uniform float scale, radius, hidden;
      varying vec3 shade;
      void main() {
        vec4 seen = modelViewMatrix * vec4(position, 1.0);
        bool gone = (int(walls + 0.5) & int(hidden + 0.5)) != 0;
        gl_Position = gone ? vec4(2.0, 2.0, 2.0, 1.0) : projectionMatrix * seen;
        gl_PointSize = max(1.5, 1.7 * radius * scale / -seen.z);
        shade = color * light;
      }`,
    fragmentShader: `
      varying vec3 shade;
      void main() {
        vec2 off = 2.0 * gl_PointCoord - 1.0;
        if (dot(off, off) > 1.0) discard;
        gl_FragColor = vec4(shade, 1.0);
      }`,
  });
  const geometry = new THREE.BufferGeometry();
  const cloud = new THREE.Points(geometry, material);
  const scene = new THREE.Scene();
  cloud.frustumCulled = false;
  scene.add(cloud);

  const unpack = async (text) => {
    const packed = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  };

  const positionsOf = (bytes, { points, low, size, levels }) => {
    const positions = new Float32Array(3 * points);
    for (let axis = 0; axis < 3; axis++) {
      for (let point = 0, step = 0; point < points; point++) {
        const start = 2 * axis * points + point;
        step = (step + bytes[start] + 256 * bytes[start + points]) & 65535;
        positions[3 * point + axis] = low[axis] + (step / levels) * size;
      }
    }
    return positions;
  };

  const OFF = 128; // bit of points whose class is switched off; the others are those of walls
  let shown, layer, threshold = 0, request = 0;

  function draw() {
    request = 0;
    const { clientWidth: width, clientHeight: height } = canvas;
    if (!width || !shown) return;
    renderer.setSize(width, height, false);
    camera.aspect = width / height;
    camera.updateProjectionMatrix();
    const eye = camera.position.clone().sub(controls.target).normalize();
    material.uniforms.hidden.value = shown.sides.reduce(
      (bits, [x, y, z], side) => bits | (x * eye.x + y * eye.y + z * eye.z > 0.2 ? 1 << side : 0), OFF);
    material.uniforms.radius.value = shown.radius;
    material.uniforms.scale.value =
      (height * renderer.getPixelRatio()) / (2 * Math.tan((camera.fov * Math.PI) / 360));
    renderer.render(scene, camera);
    pane.dataset.shown = `${shown.name} / ${layer.name}`; // says that what is asked for is drawn
  }
  const redraw = () => (request ||= requestAnimationFrame(draw));

  function look() {
    const { box, azimuth, elevation } = shown;
    const [a, e] = [(azimuth * Math.PI) / 180, (elevation * Math.PI) / 180];
    const reach = Math.hypot(...box.map(([low, high]) => high - low)) / 2;
    controls.target.set(...box.map(([low, high]) => (low + high) / 2));
    const aspect = canvas.clientWidth / (canvas.clientHeight || 1) || 1;
    const away = ((reach / Math.sin((camera.fov * Math.PI) / 360)) * 0.8) / Math.min(1, aspect);
    camera.position.set(Math.cos(e) * Math.cos(a), Math.cos(e) * Math.sin(a), Math.sin(e))
      .multiplyScalar(away).add(controls.target);
    camera.near = away / 200;
    camera.far = away * 20;
    controls.minDistance = reach / 20;
    controls.maxDistance = away * 5;
    controls.update();
    redraw();
  }

  // The colours of a layer, three bytes a point: from a table, from planes, or from what glows over a picture.
  async function colorsOf(one) {
    const count = shown.points, colors = new Uint8Array(3 * count);
    if (one.index) {
      (await unpack(one.index)).forEach((row, point) => colors.set(one.table[row], 3 * point));
      return colors;
    }
    const planes = await unpack(one.colors ?? shown.cold[one.cold]);
    for (let point = 0; point < count; point++) {
      const red = planes[point];
      colors[3 * point] = red;
      colors[3 * point + 1] = red + planes[count + point];
      colors[3 * point + 2] = red + planes[2 * count + point];
    }
    if (one.glow) {
      (await unpack(one.glow)).forEach((value, point) => {
        const [red, green, blue, strength] = glow[value];
        if (!strength || value < 255 * threshold) return;
        [red, green, blue].forEach((tone, channel) => {
          const at = 3 * point + channel;
          colors[at] = Math.round(colors[at] + ((tone - colors[at]) * strength) / 255);
        });
      });
    }
    return colors;
  }

  // Points of classes that are switched off are marked like those of walls that are taken away.
  function switchOff(chosen, rows) {
    const walls = shown.unpacked.walls.map((bits) => bits & ~OFF);
    const off = rows && chosen.table.map(([red, green, blue]) =>
      chosen.off.has("#" + [red, green, blue].map((tone) => tone.toString(16).padStart(2, "0")).join("")));
    rows?.forEach((row, point) => off[row] && (walls[point] |= OFF));
    geometry.setAttribute("walls", new THREE.BufferAttribute(walls, 1));
    redraw();
  }

  function keyOf(chosen, rows, name, tone) {
    const mark = element("i"), item = rows ? button(name, () => {
      if (!chosen.off.delete(tone)) chosen.off.add(tone);
      item.setAttribute("aria-pressed", !chosen.off.has(tone));
      switchOff(chosen, rows);
    }) : element("span", name);
    item.className = "key";
    if (rows) item.setAttribute("aria-pressed", !chosen.off.has(tone));
    mark.style.background = tone;
    item.prepend(mark);
    return item;
  }

  function slider(chosen) {
    const label = element("label", "from", "soft"), input = element("input");
    Object.assign(input, { type: "range", min: 0, max: 1, step: 0.01, value: threshold });
    input.setAttribute("aria-label", "threshold");
    input.addEventListener("input", async () => {
      threshold = Number(input.value);
      const colors = await colorsOf(chosen);
      if (layer !== chosen || threshold !== Number(input.value)) return; // it was moved on meanwhile
      geometry.setAttribute("color", new THREE.BufferAttribute(colors, 3, true));
      redraw();
    });
    label.append(input);
    return label;
  }

  async function color(chosen) {
    layer = chosen;
    const colors = chosen.glow ? await colorsOf(chosen) : (chosen.unpacked ??= await colorsOf(chosen));
    const rows = chosen.legend.length && chosen.index ? (chosen.rows ??= await unpack(chosen.index)) : null;
    if (layer !== chosen) return; // another was chosen meanwhile
    chosen.off ??= new Set();
    geometry.setAttribute("color", new THREE.BufferAttribute(colors, 3, true));
    switchOff(chosen, rows);
    for (const button of switches.querySelectorAll("button[data-layer]")) {
      button.setAttribute("aria-pressed", shown.layers[button.dataset.layer] === chosen);
    }
    const items = chosen.legend.map(([name, tone]) => keyOf(chosen, rows, name, tone));
    const every = shown.every > 1 ? `, one in ${shown.every}` : "";
    const said = `${shown.points.toLocaleString("en")} point${shown.points > 1 ? "s" : ""}${every}${chosen.note ? "; " + chosen.note : ""}`;
    caption.replaceChildren(element("b", chosen.name), element("span", said, "soft"));
    if (chosen.glow) caption.append(element("i", "", "heat"), slider(chosen));
    caption.append(...items);
    redraw();
  }

  async function open(exhibit) {
    if (!exhibit.unpacked) {
      const parts = [exhibit.positions, exhibit.walls, exhibit.light].map(unpack);
      const [steps, walls, light] = await Promise.all(parts);
      exhibit.unpacked = { positions: positionsOf(steps, exhibit), walls, light };
      const box = [0, 1, 2].map(() => [Infinity, -Infinity]);
      exhibit.unpacked.positions.forEach((value, index) => {
        const side = box[index % 3];
        side[0] = Math.min(side[0], value);
        side[1] = Math.max(side[1], value);
      });
      exhibit.box = box;
    }
    shown = exhibit;
    geometry.setAttribute("position", new THREE.BufferAttribute(exhibit.unpacked.positions, 3));
    geometry.setAttribute("walls", new THREE.BufferAttribute(exhibit.unpacked.walls, 1));
    geometry.setAttribute("light", new THREE.BufferAttribute(exhibit.unpacked.light, 1, true));
    geometry.setDrawRange(0, exhibit.points);
    offer();
    look();
    await color(exhibit.layers[0]);
  }

  function element(name, text = "", kind = "") {
    const made = document.createElement(name);
    made.textContent = text; // never markup: names and words are what users wrote
    if (kind) made.className = kind;
    return made;
  }

  function button(text, act) {
    const made = element("button", text);
    made.type = "button";
    made.addEventListener("click", act);
    return made;
  }

  function row(title, ...made) {
    const line = element("div", "", "row");
    line.append(element("span", title, "group"), ...made);
    return line;
  }

  function offer() {
    const reset = button("Reset the view", look), select = element("select");
    select.setAttribute("aria-label", "scene");
    exhibits.forEach((exhibit, index) => {
      const option = element("option", exhibit.name);
      option.value = index;
      option.selected = exhibit === shown;
      select.append(option);
    });
    select.addEventListener("change", () => open(exhibits[select.value]));
    const rows = new Map();
    shown.layers.forEach((one, index) => {
      const made = button(one.name, () => color(one));
      made.dataset.layer = index;
      made.title = one.name;
      rows.set(one.group, [...(rows.get(one.group) ?? []), made]);
    });
    switches.replaceChildren(
      ...(exhibits.length > 1 ? [row("Scene", select)] : []),
      ...[...rows].map(([title, made]) => row(title, ...made)));
    switches.firstChild.append(reset);
  }

  controls.addEventListener("change", redraw);
  new ResizeObserver(redraw).observe(canvas);
  open(exhibits[0]).then(() => { // where it fails, the still pictures are what there is
    pane.hidden = false;
    look(); // the canvas has a size only now
  });
})();
