// Package hubble holds Tapestry's package of that name against Hubble: what it writes is read with Hubble's own
// messages, and asked for by Hubble's own client and by its command, which the module in command/ builds. They are
// modules of their own, since Hubble's needs other versions of what Tapestry uses. "make hubble" runs it; with
// HUBBLE=/path/to/it a command that is built already is used.
package hubble
