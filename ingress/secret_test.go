package ingress

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"fmt"
	"log/slog"
	"math/big"
	"strings"
	"testing"
)

// A Config never prints its private keys, whatever the verb.
func TestPrivateKeysAreNotPrinted(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := key.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	c := Config{Certificates: []Certificate{{Name: "default/web", Hosts: []string{"web.example"}, Cert: tls.Certificate{PrivateKey: key, Certificate: [][]byte{raw}}}}}
	var log bytes.Buffer
	slog.New(slog.NewTextHandler(&log, nil)).Info("m", "certificate", c.Certificates[0], "config", c, "pointer", &c)
	texts := []string{log.String()}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%d", "%x"} {
		texts = append(texts, fmt.Sprintf(verb, c), fmt.Sprintf(verb, &c), fmt.Sprintf(verb, c.Certificates[0]), fmt.Errorf("set "+verb+": %w", c, tls.AlertError(1)).Error())
	}
	for _, text := range texts {
		for _, secret := range []string{fmt.Sprintf("%x", raw[:8]), new(big.Int).SetBytes(raw).String(), fmt.Sprint(raw[:8]), strings.Trim(fmt.Sprint(raw[:4]), "[]")} {
			if strings.Contains(text, secret) {
				t.Errorf("the private key is in %s", text)
			}
		}
	}
	if !strings.Contains(fmt.Sprint(c), "default/web") {
		t.Errorf("%v does not tell which certificate it has", c)
	}
}
