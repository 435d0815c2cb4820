// Rules to begin with: they say what to look at more closely, and name no families. Change them,
// add files of your own beside this one, or empty it; `cuckoo init` writes it only where it is
// missing. They are read anew for each report.

rule upx_packed {
    meta:
        description = "Packed with UPX"
    strings:
        $mark = "UPX!"
        $info = "$Info: This file is packed with the UPX"
        $first = "UPX0"
        $second = "UPX1"
    condition:
        (uint32(0) == 0x464c457f and $mark and $info)
        or (uint16(0) == 0x5a4d and $mark and $first in (0..4096) and $second in (0..4096))
}

rule shell_dropper {
    meta:
        description = "A shell script that fetches something and makes a file executable"
    strings:
        $fetch = /\b(wget|curl|tftp|ftpget)\s+-?[^\n]{0,300}(https?|ftp|tftp):\/\//
        $chmod = /\bchmod\s+(\+x|[0-7]{0,1}[1357][0-7]{2}|a\+x|u\+x)\s/
    condition:
        filesize < 1MB and uint16(0) == 0x2123 and all of them
}

rule reverse_shell_script {
    meta:
        description = "A script that connects a shell to a host"
    strings:
        $bash = /(>|<)&?\s*\/dev\/(tcp|udp)\/[\w.$\{\}-]{1,100}\/[\w$\{\}]{1,10}/
        $netcat = /\b(nc|ncat|netcat)\s+[^\n]{0,200}-\w*[ec]\s*\/?(bin\/)?(ba|da)?sh\b/
        $pty = /pty\.spawn\(\s*["']\/?(bin\/)?(ba|da)?sh["']/
        $dup = /os\.dup2\(\s*\w+\.fileno\(\)\s*,\s*[012]\s*\)/
    condition:
        filesize < 1MB and uint32(0) != 0x464c457f and any of them
}

rule encoded_program {
    meta:
        description = "A program for Windows or Linux, in base64"
    strings:
        $pe = /TV(qQ|oA|pQ|pB|rA)AA[A-Za-z0-9+\/]{200}/
        $elf = /f0VMRg(IB|EB)AQ[A-Za-z0-9+\/]{100}/
    condition:
        any of them
}

rule coin_miner {
    meta:
        description = "Speaks the protocol of mining pools"
    strings:
        $address = /stratum\+(tcp|ssl|tls):\/\//
        $login = "mining.subscribe"
        $submit = "mining.submit"
        $donate = "donate-level"
        $algorithm = /\b(randomx|cryptonight|rx\/0|cn\/r)\b/
    condition:
        2 of them
}

rule web_shell {
    meta:
        description = "PHP that runs what a request brings"
    strings:
        $php = "<?php" nocase
        $run = /\b(eval|assert|system|shell_exec|passthru|exec|popen)\s*\(\s*[^;]{0,80}\$_(GET|POST|REQUEST|COOKIE|SERVER)\b/ nocase
    condition:
        filesize < 1MB and all of them
}

rule ransom_note_text {
    meta:
        description = "The words of a ransom note"
    strings:
        $files = /(all )?(of )?your (important )?(files|data|documents)( \w+){0,4} (have been|were|are|has been) (\w+ )?(encrypted|locked|stolen)/ nocase ascii wide
        $pay = /\b(bitcoins?|btc|monero|xmr)\b/ nocase ascii wide
        $onion = /[a-z2-7]{16,56}\.onion/ nocase ascii wide
        $key = /(decryption key|private key|decryptor|decrypt(ion)? (tool|software))/ nocase ascii wide
    condition:
        $files and 1 of ($pay, $onion, $key)
}

rule preload_rootkit {
    meta:
        description = "A library that takes the place of functions to hide files or processes"
    strings:
        $preload = "ld.so.preload"
        $next = "dlsym"
        $readdir = "readdir64"
        $stat = /\b__(l|f)?xstat(64)?\b/
        $proc = "/proc/self/fd/%d"
    condition:
        uint32(0) == 0x464c457f and uint16(16) == 3 and $preload and $next and 1 of ($readdir, $stat, $proc)
}

rule iot_bot {
    meta:
        description = "Holds what bots for small devices hold"
    strings:
        $watchdog = /\/dev\/(misc\/)?watchdog/
        $busybox = "/bin/busybox "
        $source = "TSource Engine Query"
        $wget = /wget\+?[ +]http|\$\{IFS\}/
        $telnet = /enable\x00system\x00shell\x00sh\x00/
        $gpon = "/GponForm/diag_Form"
        $upnp = "/ctrlt/DeviceUpgrade_1"
    condition:
        uint32(0) == 0x464c457f and 3 of them
}
