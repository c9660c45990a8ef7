/** Label selectors: matching, and a text that is the same for equal ones. Pure. */
import type { Labels, Requirement, Selector } from "./objects.ts";

export const EVERYTHING: Selector = { requirements: [] };

export function selects(selector: Selector, labels: Labels): boolean {
  for (const requirement of selector.requirements) if (!meets(requirement, labels)) return false;
  return true;
}

/** NotIn and DoesNotExist hold for an object without the label. */
function meets({ key, operator, values }: Requirement, labels: Labels): boolean {
  const value = Object.hasOwn(labels, key) ? labels[key] : undefined;
  switch (operator) {
    case "In":
      return value !== undefined && values.includes(value);
    case "NotIn":
      return value === undefined || !values.includes(value);
    case "Exists":
      return value !== undefined;
    default:
      return value === undefined;
  }
}

/** Equal selectors have equal texts, whatever the order in which they were written. */
export function selectorText(selector: Selector): string {
  return selector.requirements
    .map(({ key, operator, values }) => `${key} ${operator}(${[...new Set(values)].sort().join(",")})`)
    .sort()
    .join(" & ");
}

/** In words: "app=web, tier in (a, b), !old"; "any" for one without requirements. */
export function describeSelector(selector: Selector): string {
  if (selector.requirements.length === 0) return "any";
  return selector.requirements
    .map(({ key, operator, values }) => {
      if (operator === "Exists") return key;
      if (operator === "DoesNotExist") return `!${key}`;
      if (operator === "In" && values.length === 1) return `${key}=${values[0]}`;
      return `${key} ${operator === "In" ? "in" : "not in"} (${values.join(", ")})`;
    })
    .join(", ");
}
