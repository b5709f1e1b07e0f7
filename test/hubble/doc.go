// Package hubble holds Tapestry's package of that name against Hubble: what it writes is read with Hubble's own
// messages, and asked for by Hubble's own client. It is a module of its own, since Hubble's needs other versions of what
// Tapestry uses. "make hubble" runs it.
package hubble
