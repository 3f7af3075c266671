/** What the user can do something about: what happened, and what to do. */
export class Problem extends Error {}
