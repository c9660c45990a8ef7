import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { locateJson, parseJsonWithComments } from "./json-with-comments.ts";

const valueIn = (text: string) => {
  const read = parseJsonWithComments(text);
  return read.kind === "value" ? read.value : `line ${read.line} column ${read.column}: ${read.message}`;
};

describe("parseJsonWithComments", () => {
  it.each([
    [
      "line comments and blank lines",
      '{\n  // pool\n\n  "a": 1, // most idle\n\n  "b": [1, 2]\n}\n// end',
      { a: 1, b: [1, 2] },
    ],
    ["block comments", '/* x\n y */ {"a" /* : */ : /**/ 1}', { a: 1 }],
    ["// in a string as data", '{"url": "http://10.0.0.1/x"}', { url: "http://10.0.0.1/x" }],
    ["/* in a string as data", '{"a": "/* no */"}', { a: "/* no */" }],
    ["an escaped quote before //", '{"a": "\\" // b"}', { a: '" // b' }],
    ["escapes", '"\\u0041\\n\\/\\ud83d\\ude00"', "A\n/😀"],
    ["a member named __proto__ as data", '{"__proto__": 1}', JSON.parse('{"__proto__": 1}')],
    ["a document that is one value", " null ", null],
    ["carriage returns", '{\r\n"a":1\r\n}', { a: 1 }],
  ])("reads %s", (_claim, text, want) => expect(valueIn(text)).toEqual(want));

  it.each([
    ["an unknown word", '{\n  "a": yes\n}', 'line 2 column 8: expected a value, got "y"'],
    ["a trailing comma", '{\n "a": 1,\n}', 'line 2 column 8: a comma before "}" is not JSON: remove it'],
    ["a trailing comma in a list", "[1,]", 'line 1 column 3: a comma before "]" is not JSON: remove it'],
    ["a missing comma", '{"a": 1\n "b": 2}', 'line 2 column 2: expected "," or "}", got """'],
    ["single quotes", "{'a': 1}", 'line 1 column 2: expected a name in double quotes, got "\'"'],
    ["an endless comment", '{"a": 1}\n /* x', "line 2 column 2: this comment does not end: add */"],
    ["an endless string", '{"a": "x\n}', "line 1 column 7: this string does not end: add a double quote"],
    [
      "a name given twice",
      '{"a": 1,\n "a": 2}',
      'line 2 column 2: the name "a" comes twice in this object: remove one',
    ],
    ["an octal number", "010", 'line 1 column 2: expected the end of the document, got "1"'],
    ["a hash comment", "# x\n{}", 'line 1 column 1: expected a value, got "#"'],
    ["a wrong escape", '"\\x41"', 'line 1 column 2: "\\x" is no JSON escape'],
    ["an empty document", " \n", "line 2 column 1: expected a value, got the end of the document"],
    ["a byte order mark", "\ufeff{}", "line 1 column 1: expected a value, got character U+feff"],
    ["endless nesting", "[".repeat(1000), "line 1 column 66: nested deeper than 64 levels"],
  ])("names line and column of %s", (_claim, text, want) => expect(valueIn(text)).toBe(want));

  it("agrees with JSON.parse on every document JSON.stringify writes", () => {
    fc.assert(
      fc.property(fc.jsonValue({ maxDepth: 6 }), fc.boolean(), (value, indent) => {
        const text = JSON.stringify(value, undefined, indent ? 2 : 0);
        expect(valueIn(text)).toEqual(JSON.parse(text));
      }),
    );
  });

  it("accepts what JSON.parse accepts and refuses what it refuses, when there is no comment and no double name", () => {
    const part = fc.constantFrom(
      "{",
      "}",
      "[",
      "]",
      ",",
      ":",
      '"a"',
      '"b"',
      "1",
      "-",
      ".5",
      "e3",
      "true",
      "nul",
      " ",
      "\n",
      '"\\u12"',
    );
    fc.assert(
      fc.property(fc.array(part, { maxLength: 9 }), (parts) => {
        const text = parts.join("");
        let want = true;
        try {
          JSON.parse(text);
        } catch {
          want = false;
        }
        const read = parseJsonWithComments(text);
        if (read.kind === "syntax" && read.message.includes("comes twice")) return;
        expect(`${text} ${read.kind === "value"}`).toBe(`${text} ${want}`);
      }),
      { numRuns: 2000 },
    );
  });
});

describe("locateJson", () => {
  const text = `{
  "name": "a", // said
  "list": [1, {"x/y~z": true}]
}`;
  const { outcome, places } = locateJson(text);

  it("reads the same value", () => expect(outcome).toEqual(parseJsonWithComments(text)));

  it.each([
    ["/name", { line: 2, column: 3 }, { line: 2, column: 11 }],
    ["/list", { line: 3, column: 3 }, { line: 3, column: 11 }],
    ["/list/0", { line: 3, column: 12 }, { line: 3, column: 12 }],
    ["/list/1/x~1y~0z", { line: 3, column: 16 }, { line: 3, column: 25 }],
    ["", { line: 1, column: 1 }, { line: 1, column: 1 }],
    ["/nothing", undefined, undefined],
  ])("says where %s is", (pointer, name, value) => {
    expect([places.name(pointer), places.value(pointer)]).toEqual([name, value]);
  });

  it("says where the first comment is", () => expect(places.comment).toEqual({ line: 2, column: 16 }));

  it("knows the parts before a fault", () => {
    const broken = locateJson('{"a": 1,\n "b": }');
    expect([broken.outcome, broken.places.name("/a")]).toMatchObject([
      { kind: "syntax", line: 2, column: 7 },
      { line: 1, column: 2 },
    ]);
  });
});
