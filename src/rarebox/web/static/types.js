/**
 * Types of what the server sends and what the page keeps. All boxes are [x1, y1, x2, y2] in pixels of the original image.
 *
 * @typedef {[number, number, number, number]} Box
 * @typedef {{id: number, name: string, width: number, height: number, url: string}} Image
 * @typedef {"object" | "not_an_object" | "cannot_tell" | "withdrawn"} Verdict
 *
 * @typedef {{box: Box, label: number, query: number, answer: number, by: string}} Label   an answered box
 * @typedef {{box: Box, label: number, score: number | null, likely?: boolean}} Other       a detection nobody has answered; likely: probably right
 *
 * @typedef {object} Query  A question: what is in this box, or (box null) what is in this whole image?
 * @property {number} id
 * @property {number} cycle
 * @property {number} position
 * @property {Image} image
 * @property {Box | null} box
 * @property {number | null} guess
 * @property {number | null} score
 * @property {number | null} uncertainty
 * @property {number | null} [similarity]  to an example that somebody looked for
 * @property {string} reason
 * @property {Label[]} labels
 * @property {Other[]} others
 * @property {boolean} complete
 * @property {number} lease_seconds
 *
 * @typedef {{label: number, boxes: number}} Offer  boxes taken for one class, which may be checked at once
 *
 * @typedef {object} Item  An answer as it is sent to the server.
 * @property {string} key
 * @property {number} milliseconds
 * @property {number} [query]
 * @property {number} [image]
 * @property {Verdict} verdict
 * @property {Box[]} boxes
 * @property {number[]} labels
 * @property {number | null} after
 * @property {boolean} [complete]
 * @property {string | null} [session]   the session of the store in which the person saw its numbers
 *
 * @typedef {{by: string, verdict: Verdict, boxes: Box[], labels: number[], answer: number}} Standing
 * @typedef {{key: string, status: "saved" | "conflict" | "refused" | "rolled_back", query: number | null, answer: number | null,
 *   reason: string | null, current: Standing | null}} Result
 *
 * @typedef {{answer: number, query: number, by: string, verdict: Verdict, boxes: Box[], labels: number[], milliseconds: number,
 *   at: string, image: Image, box: Box | null, guess: number | null, cycle: number}} Answer
 *
 * @typedef {{label: number, name: string, merged_into: number | null, count: number,
 *   first: {cycle: number, answers: number} | null, asked: number}} Class
 * @typedef {{cycle: number, labels: number, reviews: number, ap50: number | null, ap50_interval: [number, number] | null,
 *   seconds?: Record<string, number>}} CycleRecord
 *
 * @typedef {{label: number | null, left: number}} Search  boxes that come first for a person; label: the class offered
 *
 * @typedef {object} State  The state of the project.
 * @property {string} id  of the project, the same on every server
 * @property {string} project
 * @property {string} server  a name of the server process
 * @property {string} session  the latest session of the store
 * @property {string | null} you
 * @property {string[]} names  all names of the visitor
 * @property {boolean} fixed_name
 * @property {Class[]} classes
 * @property {"preparing" | "first_images" | "asking" | "finished"} phase
 * @property {number} cycle
 * @property {{spent: number, of: number, unit: string}} budget
 * @property {{state: "idle" | "working" | "failed", stage: string, done: number, of: number, seconds_left: number | null, reason: string | null}} trainer
 * @property {CycleRecord[]} records
 * @property {{images: number, boxes: number, note: string} | null} held_out
 * @property {{per_minute: number | null, minutes_left: number | null}} speed
 * @property {Search | null} [search]
 * @property {{with_guesses: number | null, between_people: number | null, disagreements: number}} agreement
 * @property {string | null} advice
 * @property {{name: string, answers: number}[]} people
 * @property {boolean} can_train
 * @property {number} version
 *
 * @typedef {object} Mark  One box drawn over the picture.
 * @property {string} id      unique on the picture
 * @property {string} base    the answer it belongs to; several boxes of one whole-image answer share it
 * @property {"asked" | "label" | "other" | "draft"} kind
 * @property {Box} box
 * @property {number | null} label
 * @property {number | null} [score]
 * @property {number | null} [query]
 * @property {number | null} [answer]
 * @property {string} [key]   key of the unsent answer
 * @property {string} [by]
 */
export {};
