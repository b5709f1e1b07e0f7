package bugreport

import "regexp"

// secrets are texts of which some part is not for others, and what takes their place. They are looked for in this
// order.
var secrets = []struct {
	pattern *regexp.Regexp
	instead string
}{
	// Keys in PEM (RFC 7468), also in one line, as JSON has them, and those that were cut off.
	{regexp.MustCompile(`(?s)-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----.*?(-----END [A-Z0-9 ]*PRIVATE KEY-----|\z)`), "(a private key, left out)"},
	// Tokens of service accounts and others (RFC 7519).
	{regexp.MustCompile(`\beyJ[A-Za-z0-9_-]{5,}\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*`), "(a token, left out)"},
	// RFC 7235 and RFC 7617.
	{regexp.MustCompile(`(?i)\b(bearer|basic) +[A-Za-z0-9._~+/=-]{8,}`), "$1 (left out)"},
	// User and password in a URL (RFC 3986 3.2.1).
	{regexp.MustCompile(`(?i)\b([a-z][a-z0-9+.-]*://)[^/\s"@]*@`), "${1}(left out)@"},
	// "password: x", "token=x", "client-secret": "x", with what a word begins with. A name alone says nothing.
	{regexp.MustCompile(`(?i)((?:pass(?:word|wd|phrase)|secret|token|private-?_?key|preshared-?_?key|api-?_?key)\\?"?\s*[=:]\s*)(\\"[^"\\]*\\"|"(?:[^"\\]|\\.)*"|[^\s,;}"]+)`), "$1(left out)"},
}

// withoutSecrets returns text without what looks like a password, a token or a private key. It is the second guard:
// what is packed is chosen so that none is in it.
func withoutSecrets(text []byte) []byte {
	for _, s := range secrets {
		text = s.pattern.ReplaceAll(text, []byte(s.instead))
	}
	return text
}
