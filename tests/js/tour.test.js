import assert from "node:assert/strict";
import { test } from "node:test";

import "./fakes.js";
import { isNew, stopsOf } from "../../src/rarebox/web/static/tour.js";

test("the tour has at most four stops of one sentence, without keys on a touch screen", () => {
  for (const whole of [true, false])
    for (const touch of [true, false]) {
      const stops = stopsOf(whole, touch);
      assert.ok(stops.length <= 4);
      for (const { anchor, text } of stops) {
        assert.ok(anchor);
        assert.match(text, /^[^.!?]+\.$/);
        if (touch) assert.doesNotMatch(text, /⏎|keys|\(/);
      }
    }
  assert.notDeepEqual(stopsOf(true, false), stopsOf(false, false));
});

test("only a person without any answer, sent or unsent, under any of their names is new", () => {
  const people = [
    { name: "anna", answers: 3 },
    { name: "ben", answers: 0 },
  ];
  assert.ok(isNew({ people, names: ["carla"] }, 0));
  assert.ok(isNew({ people, names: ["ben"] }, 0)); // all answers were withdrawn
  assert.ok(!isNew({ people, names: ["carla"] }, 1));
  assert.ok(!isNew({ people, names: ["carla", "anna"] }, 0));
});
