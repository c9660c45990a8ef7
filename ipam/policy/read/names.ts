/** The API's rules for names, labels and selectors. */
import type { Labels, Requirement, Selector } from "../objects.ts";
import { EVERYTHING } from "../selector.ts";
import type { Field } from "./check.ts";

const DNS_LABEL = /^[a-z0-9]([-a-z0-9]*[a-z0-9])?$/;
const DNS_SUBDOMAIN = /^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$/;
const LABEL_WORD = /^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)$/;

export function readNamespaceName(field: Field): string | undefined {
  const name = field.text();
  if (name === undefined || (name.length <= 63 && DNS_LABEL.test(name))) return name;
  return field.fault(`"${name}" is no namespace name: at most 63 lower case letters, digits and "-"`);
}

export function readObjectName(field: Field): string | undefined {
  const name = field.required(field.text());
  if (name === undefined || (name.length <= 253 && DNS_SUBDOMAIN.test(name))) return name;
  return field.fault(`"${name}" is no object name: lower case letters, digits, "-" and "."`);
}

function checkKey(field: Field, key: string): void {
  const slash = key.indexOf("/");
  const prefix = slash < 0 ? undefined : key.slice(0, slash);
  const word = key.slice(slash + 1);
  if (prefix !== undefined && (prefix.length > 253 || !DNS_SUBDOMAIN.test(prefix)))
    field.fault(`"${key}" is no label key: "${prefix}" before the "/" is no DNS name`);
  else if (word.length > 63 || !LABEL_WORD.test(word))
    field.fault(`"${key}" is no label key: letters, digits, "-", "_" and ".", at most 63`);
}

function checkValue(field: Field, value: string): void {
  if (value !== "" && (value.length > 63 || !LABEL_WORD.test(value)))
    field.fault(`"${value}" is no label value: letters, digits, "-", "_" and ".", at most 63`);
}

export function readLabels(field: Field): Labels {
  const labels: Record<string, string> = {};
  for (const key of Object.keys(field.map() ?? {})) {
    const at = field.at(key);
    const value = at.required(at.text());
    checkKey(at, key);
    if (value === undefined) continue;
    checkValue(at, value);
    labels[key] = value;
  }
  return labels;
}

const OPERATORS = ["In", "NotIn", "Exists", "DoesNotExist"] as const;

/** undefined when absent: in peers that is not the same as an empty selector. */
export function readSelector(field: Field): Selector | undefined {
  if (field.map(["matchLabels", "matchExpressions"]) === undefined) return undefined;
  const requirements: Requirement[] = Object.entries(readLabels(field.at("matchLabels"))).map(([key, value]) => ({
    key,
    operator: "In",
    values: [value],
  }));
  for (const entry of field.at("matchExpressions").list()) {
    entry.map(["key", "operator", "values"]);
    const key = entry.at("key").required(entry.at("key").text());
    const operator = entry.at("operator").required(entry.at("operator").oneOf(OPERATORS));
    const values = entry
      .at("values")
      .list()
      .map((value) => {
        const text = value.required(value.text()) ?? "";
        checkValue(value, text);
        return text;
      });
    if (key !== undefined) checkKey(entry.at("key"), key);
    if (key === undefined || operator === undefined) continue;
    const takesValues = operator === "In" || operator === "NotIn";
    if (takesValues && values.length === 0)
      entry.at("values").fault(`must have an entry when the operator is ${operator}`);
    if (!takesValues && values.length > 0) entry.at("values").fault(`may not be set when the operator is ${operator}`);
    requirements.push({ key, operator, values });
  }
  return requirements.length === 0 ? EVERYTHING : { requirements };
}
