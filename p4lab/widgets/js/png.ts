// PNG files of few colours: a browser writes four bytes for each pixel, which no packing makes up for.

const BINS = 32; // shades of a channel that are told apart when colours are counted
const place = (data: Uint8ClampedArray, i: number) => (
  ((data[i] >> 3) << 10) | ((data[i + 1] >> 3) << 5) | (data[i + 2] >> 3));

interface Bin { at: number; rgb: number[]; count: number }

/** The colours of an image, alike ones together: [how many pixels, their mean]. */
function counted(data: Uint8ClampedArray) {
  const count = new Uint32Array(BINS ** 3), sums = [0, 1, 2].map(() => new Float64Array(BINS ** 3));
  for (let i = 0; i < data.length; i += 4) {
    const at = place(data, i);
    count[at] += 1;
    for (let k = 0; k < 3; k++) sums[k][at] += data[i + k];
  }
  const bins: Bin[] = [];
  count.forEach((n, at) => { if (n) bins.push({ at, rgb: sums.map((sum) => sum[at] / n), count: n }); });
  return bins;
}

const weight = (bins: Bin[]) => bins.reduce((sum, { count }) => sum + count, 0);

/** The channel in which colours differ most, and by how much. */
function widest(bins: Bin[]): [number, number] {
  const spans = [0, 1, 2].map((k) => {
    const values = bins.map(({ rgb }) => rgb[k]);
    return Math.max(...values) - Math.min(...values);
  });
  const span = Math.max(...spans);
  return [spans.indexOf(span), span];
}

/** Divide an image's colours into so many groups of alike ones (median cut, Heckbert 1982). */
function divided(bins: Bin[], most: number) {
  const groups = [{ bins, gain: Infinity }];
  while (groups.length < most) {
    const next = groups.reduce((best, group) => (group.gain > best.gain ? group : best));
    if (next.bins.length < 2) break;
    const [channel] = widest(next.bins), sorted = next.bins.sort((a, b) => a.rgb[channel] - b.rgb[channel]);
    const half = weight(sorted) / 2;
    let cut = 0, passed = 0;
    do passed += sorted[cut++].count; while (passed + sorted[cut].count / 2 < half && cut < sorted.length - 1);
    groups.splice(groups.indexOf(next), 1);
    for (const part of [sorted.slice(0, cut), sorted.slice(cut)]) {
      // A group counts by how far its colours lie apart, and a little by how often they are seen.
      groups.push({ bins: part, gain: part.length < 2 ? 0 : widest(part)[1] * weight(part) ** 0.25 });
    }
  }
  return groups.map((group) => group.bins);
}

/** A palette of at most so many colours for an image, and for each pixel its place there. */
export function indexed(data: Uint8ClampedArray, most: number) {
  const table = new Uint8Array(BINS ** 3), palette = divided(counted(data), most).map((bins, index) => {
    for (const { at } of bins) table[at] = index;
    // The commonest colour of a group, not the mean: that of a thin line is paler than the line.
    return bins.reduce((best, bin) => (bin.count > best.count ? bin : best)).rgb.map(Math.round);
  });
  return { palette, pixels: Uint8Array.from({ length: data.length / 4 }, (_, i) => table[place(data, 4 * i)]) };
}

const CRC = Uint32Array.from({ length: 256 }, (_, n) => {
  let c = n;
  for (let k = 0; k < 8; k++) c = c & 1 ? 0xedb88320 ^ (c >>> 1) : c >>> 1;
  return c;
});

function chunk(name: string, content: Uint8Array) {
  const bytes = new Uint8Array(content.length + 12), view = new DataView(bytes.buffer);
  view.setUint32(0, content.length);
  bytes.set([...name].map((letter) => letter.charCodeAt(0)), 4);
  bytes.set(content, 8);
  let crc = 0xffffffff;
  for (let i = 4; i < content.length + 8; i++) crc = CRC[(crc ^ bytes[i]) & 255] ^ (crc >>> 8);
  view.setUint32(content.length + 8, ~crc >>> 0);
  return bytes;
}

/** The content of a PNG file with at most so many colours (256 at most). */
export async function png({ data, width, height }: Pick<ImageData, "data" | "width" | "height">, most: number) {
  const { palette, pixels } = indexed(data as Uint8ClampedArray, most), depth = most <= 16 ? 4 : 8, per = 8 / depth;
  const line = Math.ceil(width / per) + 1, rows = new Uint8Array(line * height);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      rows[y * line + 1 + Math.floor(x / per)] |= pixels[y * width + x] << (8 - depth * ((x % per) + 1));
    }
  }
  const stream = new Blob([rows]).stream().pipeThrough(new CompressionStream("deflate"));
  const packed = new Uint8Array(await new Response(stream).arrayBuffer());
  const head = new Uint8Array(13), view = new DataView(head.buffer);
  view.setUint32(0, width);
  view.setUint32(4, height);
  head.set([depth, 3, 0, 0, 0], 8);
  const parts = [
    Uint8Array.of(137, 80, 78, 71, 13, 10, 26, 10), chunk("IHDR", head), chunk("PLTE", Uint8Array.from(palette.flat())),
    chunk("IDAT", packed), chunk("IEND", new Uint8Array()),
  ];
  return new Blob(parts as BlobPart[]).arrayBuffer();
}
