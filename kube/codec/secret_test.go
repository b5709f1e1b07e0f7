package codec

import (
	"strings"
	"testing"
)

// Messages about a Secret, whatever is wrong with it, quote nothing of its content.
func TestMistakesInSecrets(t *testing.T) {
	const secret = "hunter2hunter2"
	for name, text := range map[string]string{
		"a string for the data":     "data: " + secret,
		"a string for stringData":   "stringData: " + secret,
		"a list of it":              "stringData: [" + secret + "]",
		"not base64":                "data: {tls.key: " + secret + "!}",
		"a mapping in it":           "data: {tls.key: {pem: " + secret + "}}",
		"a list in it":              "data: {tls.key: [" + secret + "]}",
		"a boolean, and more":       "immutable: " + secret,
		"a time":                    "metadata: {name: s, creationTimestamp: " + secret + "}",
		"read as a number":          "stringData: {password: !!int " + secret + "}",
		"an alias":                  "stringData: {password: *" + secret + "}",
		"a quote that is not ended": "stringData: {password: \"" + secret + "}",
		"a block that is not one":   "stringData:\n  tls.key: |\n" + secret + "\n",
		"an unknown escape":         "stringData: {password: \"\\" + secret + "\"}",
		"a field that is not there": "stringdata: {password: " + secret + "}",
		"a tab":                     "stringData:\n\tpassword: " + secret,
		"tagged":                    "stringData: {password: !" + secret + " x}",
	} {
		head := "apiVersion: v1\nkind: Secret\n"
		if !strings.Contains(text, "metadata") {
			head += "metadata: {name: s}\n"
		}
		_, err := Decode("f.yaml", []byte(head+text+"\n"))
		if err == nil {
			if name == "tagged" { // tags are ignored
				continue
			}
			t.Errorf("%s: it is no mistake", name)
			continue
		}
		if strings.Contains(err.Error(), "hunter2") || !strings.Contains(err.Error(), "f.yaml:") {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, number := range map[string]string{"integer": "4815162342", "float": "48.15162342", "boolean": "true"} {
		_, err := Decode("f.yaml", []byte("apiVersion: v1\nkind: Secret\nmetadata: {name: s}\nstringData: {pin: "+number+"}\n"))
		if err == nil || strings.Contains(err.Error(), number) || !strings.Contains(err.Error(), "stringData[pin]: expected a string, got a ") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
