/** GPT-2's spelling of the 256 bytes as visible characters: printable Latin-1 as is, the others from U+0100 on. */
export const byteCharacters: readonly string[] = (() => {
  let next = 0x100;
  return Array.from({ length: 256 }, (_, byte) => {
    const isVisible = (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
    return String.fromCharCode(isVisible ? byte : next++);
  });
})();

const byteOfCharacter: ReadonlyMap<string, number> = new Map(byteCharacters.map((character, byte) => [character, byte]));
const utf8Encoder = new TextEncoder();

/** The bytes of a text in UTF-8, each as its visible character. */
export function spellBytes(text: string): string {
  if (/^[!-~]*$/.test(text)) return text;
  let spelled = "";
  for (const byte of utf8Encoder.encode(text)) spelled += byteCharacters[byte]!;
  return spelled;
}

/** The bytes that a spelling stands for; those of the text itself where it has a character that stands for none. */
export function unspellBytes(text: string): Uint8Array {
  const bytes = Array.from(text, (character) => byteOfCharacter.get(character));
  return bytes.includes(undefined) ? utf8Encoder.encode(text) : Uint8Array.from(bytes as number[]);
}
