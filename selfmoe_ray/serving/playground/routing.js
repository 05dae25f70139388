// Numbers from the routing object of an answer; a gate is a list of weights, one an expert.

/** The index of the heaviest expert, or -1 where no expert is used or the token has no gate. */
export function topExpert(gate) {
  if (!gate) return -1;
  const heaviest = Math.max(...gate);
  return heaviest > 0 ? gate.indexOf(heaviest) : -1;
}

/** The share of routed tokens whose top expert is each expert; gates: [tokens][experts]. */
export function topShares(gates, numExperts) {
  const counts = new Array(numExperts).fill(0);
  const tops = gates.map(topExpert).filter((expert) => expert >= 0);
  for (const expert of tops) counts[expert] += 1;
  return counts.map((count) => count / Math.max(tops.length, 1));
}

/** The mean gate of the tokens that have one: [experts]. */
export function meanGate(gates, numExperts) {
  const routed = gates.filter(Boolean);
  const sums = new Array(numExperts).fill(0);
  for (const gate of routed) gate.forEach((weight, expert) => (sums[expert] += weight));
  return sums.map((sum) => sum / Math.max(routed.length, 1));
}

/** The mean over tokens `from` to `to` (excluded) of each layer: layers [layers][tokens][experts] -> [layers][experts]. */
export function meanOfLayers(layers, from, to, numExperts) {
  return layers.map((tokens) => meanGate(tokens.slice(from, to), numExperts));
}

export function percent(share) {
  return `${(100 * share).toFixed(0)}%`;
}
