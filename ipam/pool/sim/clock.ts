/** Virtual time: events in order of their moment, and in order of their making within one. */
export interface VirtualClock {
  now(): number;
  /** Runs `work` in `ms` from now. */
  after(ms: number, work: () => void): void;
  /** Runs everything due up to `untilMs`. */
  runUntil(untilMs: number): void;
}

interface Event {
  readonly atMs: number;
  readonly order: number;
  readonly work: () => void;
}

export function createVirtualClock(): VirtualClock {
  const heap: Event[] = [];
  let nowMs = 0;
  let order = 0;
  const before = (a: Event, b: Event) => a.atMs < b.atMs || (a.atMs === b.atMs && a.order < b.order);

  function push(event: Event): void {
    let i = heap.push(event) - 1;
    while (i > 0) {
      const parent = (i - 1) >> 1;
      const above = heap[parent];
      if (above === undefined || !before(event, above)) break;
      heap[i] = above;
      heap[parent] = event;
      i = parent;
    }
  }

  function pop(): Event | undefined {
    const first = heap[0];
    const last = heap.pop();
    if (last === undefined || last === first) return first;
    heap[0] = last;
    for (let i = 0; ; ) {
      const [left, right] = [2 * i + 1, 2 * i + 2];
      const smaller = heap[right] !== undefined && before(heap[right], heap[left] ?? heap[right]) ? right : left;
      const child = heap[smaller];
      if (child === undefined || !before(child, last)) break;
      heap[smaller] = last;
      heap[i] = child;
      i = smaller;
    }
    return first;
  }

  return {
    now: () => nowMs,
    after(ms, work) {
      order += 1;
      push({ atMs: nowMs + Math.max(0, ms), order, work });
    },
    runUntil(untilMs) {
      while ((heap[0]?.atMs ?? Number.POSITIVE_INFINITY) <= untilMs) {
        const event = pop();
        if (event === undefined) break;
        nowMs = event.atMs;
        event.work();
      }
      nowMs = untilMs;
    },
  };
}
