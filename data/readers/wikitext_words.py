"""What names mean in wikitext, in the languages of the large Wikipedias: tables, no code.

All in lower case.
"""

NAMESPACES = """file image category datei bild kategorie fichier catégorie archivo imagen categoría
    immagine categoria ficheiro arquivo imagem bestand afbeelding categorie plik grafika kategoria
    файл изображение категория зображення категорія ファイル 画像 カテゴリ 文件 檔案 档案 图像
    圖像 分类 分類 파일 그림 분류 ملف صورة تصنيف پرونده رده קובץ תמונה קטגוריה fil kategori bilde
    billede tiedosto kuva luokka soubor obrázek fájl kép kategória dosya resim berkas gambar fișier
    imagine αρχείο εικόνα κατηγορία fitxer imatge ไฟล์ ภาพ หมวดหมู่ चित्र श्रेणी fitxategi irudi
    картинка датотека слика категорија datoteka slika kategorija súbor obrázok"""
# Namespaces of media and of categories: links to them show nothing in the text.
HIDDEN_NAMESPACES = frozenset(NAMESPACES.split()) | {"tập tin", "hình", "thể loại"}
SECTIONS = """references, notes, footnotes, citations, sources, bibliography, further reading,
    external links, see also, notes and references, references and notes, general references,
    works cited, einzelnachweise, weblinks, literatur, siehe auch, quellen, anmerkungen, fußnoten,
    nachweise, références, notes et références, liens externes, lien externe, voir aussi, annexes,
    bibliographie, articles connexes, referencias, notas, notas y referencias, enlaces externos,
    véase también, bibliografía, note, collegamenti esterni, voci correlate, altri progetti,
    bibliografia, referências, ligações externas, ver também, notas e referências, referenties,
    externe links, zie ook, bronnen, literatuur, przypisy, linki zewnętrzne, zobacz też, примечания,
    ссылки, литература, см. также, источники, примітки, посилання, література, джерела, див. також,
    脚注, 注釈, 出典, 外部リンク, 関連項目, 参考文献, 関連文献, 參考文獻, 参考资料, 參考資料,
    外部链接, 外部連結, 外部鏈接, 参见, 參見, 参看, 注释, 註釋, 脚註, 相关条目, 相關條目,
    延伸阅读, 延伸閱讀, 각주, 외부 링크, 같이 보기, 참고 문헌, مراجع, المراجع, وصلات خارجية,
    انظر أيضا, הערות שוליים, קישורים חיצוניים, ראו גם, referenser, externa länkar, se även,
    referanser, eksterne lenker, se også, referencer, eksterne henvisninger, lähteet,
    aiheesta muualla, katso myös, reference, externí odkazy, související články, jegyzetek,
    további információk, források, kaynakça, dış bağlantılar, ayrıca bakınız, tham khảo,
    liên kết ngoài, xem thêm, referensi, pranala luar, lihat pula, note și referințe,
    legături externe, vezi și"""
# Sections of links and references, dropped with what is below them.
DROPPED_SECTIONS = frozenset(map(str.strip, SECTIONS.split(",")))
REDIRECTS = """redirect weiterleitung redirection redirección redireccion rinvia redirecionamento
    doorverwijzing patrz przekieruj перенаправление перенаправлення 転送 リダイレクト 重定向
    넘겨주기 تحويل omdirigering omdirigering ohjaus přesměruj átirányítás yönlendirme đổi alih"""
# Wikipedias whose address is not their language's code.
LANGUAGES = {
    "simple": "en", "als": "gsw", "bat-smg": "sgs", "be-x-old": "be", "be-tarask": "be",
    "fiu-vro": "vro", "nds-nl": "nds", "roa-rup": "rup", "zh-classical": "lzh", "zh-min-nan": "nan",
    "zh-yue": "yue", "cbk-zam": "cbk", "map-bms": "jv", "roa-tara": "nap", "commons": "",
    "species": "", "meta": "", "www": "", "incubator": "", "wikimania": "",
}  # fmt: skip
